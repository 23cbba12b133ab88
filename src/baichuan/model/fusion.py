"""A linear layer together with the norm before it and the sum behind it.

Quantized layers compute all of it in one pass over their weights; any other layer (plain, or
wrapped by an adapter) is computed step by step. So network.py is written once and knows no bits.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from baichuan.kernels import gradients, ops
from baichuan.quant.linear import QuantizedLinear


class RMSNorm(Protocol):
    """What is asked of a norm: its weight [columns], its eps, and to be called."""

    weight: nn.Parameter
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        ...


def project(
    linear: nn.Module, x: Tensor, *, norm: RMSNorm | None = None, residual: Tensor | None = None
) -> Tensor:
    """Give residual + linear(norm(x)), for x [..., columns]."""
    if isinstance(linear, QuantizedLinear):
        return cast(Tensor, linear(x, norm=_weight(norm), residual=residual))
    y = linear(x if norm is None else norm(x))
    return cast(Tensor, y if residual is None else residual + y)


def gated(gate: nn.Module, up: nn.Module, x: Tensor, *, norm: RMSNorm) -> Tensor:
    """Give silu(gate(norm(x))) * up(norm(x)), for x [..., columns]."""
    if _alike(gate, up):
        return cast(Tensor, gate(x, norm=_weight(norm), up=up))
    x = norm(x)
    return gradients.gate(gate(x), up(x))


def _alike(gate: nn.Module, up: nn.Module) -> bool:
    if not (isinstance(gate, QuantizedLinear) and isinstance(up, QuantizedLinear)):
        return False
    return gate.scheme.columns_per_group == up.scheme.columns_per_group


def _weight(norm: RMSNorm | None) -> ops.Norm | None:
    return None if norm is None else ops.Norm(norm.weight, norm.eps)
