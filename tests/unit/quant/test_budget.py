"""Mixing formats within a budget: what is chosen must be the best that fits."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan.errors import UsageError
from baichuan.quant.budget import SCHEMES, mixed

INT3, INT4, INT8 = SCHEMES


def total(values, choice):
    return sum(values[name][scheme] for name, scheme in choice.items())


def sizes_of(weights):
    return {
        name: {scheme: int(count * scheme.bits / 8) for scheme in SCHEMES}
        for name, count in weights.items()
    }


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(100, 10_000), min_size=1),
    st.floats(0, 1),
    st.sampled_from([1e-20, 1.0, 1e12]),
    st.data(),
)
def test_nothing_that_fits_in_what_was_used_loses_less(weights, share, unit, data):
    sizes = sizes_of(weights)
    losses = {}
    for name in weights:
        three = data.draw(st.floats(0.1, 10)) * unit
        losses[name] = {INT3: three, INT4: three / 4, INT8: three / 200}
    least = sum(each[INT3] for each in sizes.values())
    most = sum(each[INT8] for each in sizes.values())
    choice = mixed(losses, sizes, least + share * (most - least))
    used = total(sizes, choice)
    assert used <= least + share * (most - least)
    for others in itertools.product(SCHEMES, repeat=len(weights)):
        other = dict(zip(weights, others, strict=True))
        if total(sizes, other) <= used:
            assert total(losses, other) >= total(losses, choice) * (1 - 1e-9)


def test_room_for_all_gives_the_best_and_no_more_room_the_smallest():
    sizes = sizes_of({"a": 800, "b": 800})
    losses = {name: {INT3: 3.0, INT4: 2.0, INT8: 1.0} for name in sizes}
    assert mixed(losses, sizes, 1600) == {"a": INT8, "b": INT8}
    assert mixed(losses, sizes, 600) == {"a": INT3, "b": INT3}
    with pytest.raises(UsageError, match=r"3 bits .* take 0\.1 MB"):
        mixed(losses, sizes, 599)


def test_bytes_go_where_they_save_most():
    sizes = sizes_of({"sturdy": 800, "fragile": 800})
    losses = {
        "sturdy": {INT3: 0.3, INT4: 0.1, INT8: 0.0},
        "fragile": {INT3: 30.0, INT4: 10.0, INT8: 0.1},
    }
    assert mixed(losses, sizes, 1100) == {"sturdy": INT3, "fragile": INT8}
