"""Which matrix has which format, for the least loss within so many bytes. Knows numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from baichuan.errors import UsageError
from baichuan.quant.scheme import Scheme

#: What matrices are mixed of; one group size, for gate and up projection are multiplied together.
SCHEMES = (Scheme(3, 64), Scheme(4, 64), Scheme(8, 64))
_HALVINGS = 100


def mixed(
    losses: Mapping[str, Mapping[Scheme, float]],
    sizes: Mapping[str, Mapping[Scheme, int]],
    budget: float,
    rest: int = 0,
) -> dict[str, Scheme]:
    """Choose the scheme of each matrix.

    The sum of losses is the least for the bytes that the choice takes (Lagrange: each matrix takes
    what is best at one price of a byte, and the price is as low as the budget allows).

    Args:
        losses: by matrix and scheme, in any unit that adds up.
        sizes: bytes, alike.
        budget: bytes for all of them and the rest.
        rest: bytes of what is not quantized.

    Raises:
        UsageError: the smallest choice is larger.
    """
    smallest = rest + sum(min(each.values()) for each in sizes.values())
    if smallest > budget:
        raise UsageError(
            "The budget is {given:,.1f} MB; with {bits} bits for each matrix the weights take "
            "{least:,.1f} MB. Give at least that.",
            given=budget / 1e6,
            bits=min(scheme.bits for scheme in SCHEMES),
            least=math.ceil(smallest / 1e5) / 10,
        )

    def at_price(price: float) -> dict[str, Scheme]:
        return {
            name: min(each, key=lambda s: (each[s] + price * sizes[name][s], sizes[name][s]))
            for name, each in losses.items()
        }

    # Between these, all of a matrix's schemes are the best once, whatever the unit of losses.
    most = max(max(each.values()) for each in losses.values())
    low, high = 1e-30 * most, max(most, 1e-30)
    for _ in range(_HALVINGS):
        price = (max(low, 1e-300) * high) ** 0.5
        if rest + sum(sizes[n][s] for n, s in at_price(price).items()) <= budget:
            high = price
        else:
            low = price
    return at_price(high)
