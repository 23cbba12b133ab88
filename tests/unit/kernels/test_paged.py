"""Attention over paged caches: one result to the last bit, and the right one."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baichuan.errors import UsageError
from baichuan.kernels import native
from baichuan.kernels.paged import BLOCK, PagedCaches, attend_newest

ALL = native.available()
LAYERS = 2
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def random_blocks(heads, held, width, dtype):
    """Blocks with room for one position more than they hold; what is not held is NaN."""
    count = held // BLOCK + 1
    blocks = torch.full((count, LAYERS, 2, heads, BLOCK, width), torch.nan, dtype=dtype)
    for position in range(held):
        blocks[position // BLOCK, ..., position % BLOCK, :] = torch.randn(
            LAYERS, 2, heads, width
        ).to(dtype)
    return list(blocks)


def copied(blocks):
    return [[block.clone() for block in held] for held in blocks]


def joined(blocks, layer, count):
    keys, values = torch.cat([block[layer] for block in blocks], dim=2)[:, :, :count]
    return keys, values


def turned(x, cos, sin):
    first, second = x.double().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def exactly(query, keys, values, slopes):
    scores = torch.einsum("hd,hkd->hk", query.double(), keys.double()) / query.shape[1] ** 0.5
    if slopes is not None:
        scores += slopes.double()[:, None] * torch.arange(1 - keys.shape[1], 1)
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), values.double())


@settings(max_examples=60)
@given(
    st.integers(1, 7),
    st.integers(1, 35),
    st.lists(st.integers(0, 200), min_size=1, max_size=5),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from(["alibi", "rope", "neither"]),
)
def test_it_is_that_of_float64(heads, half, lengths, dtype, positions):
    width = 2 * half
    blocks = [random_blocks(heads, held, width, dtype) for held in lengths]
    packed = torch.randn(len(lengths), 3, heads, width).to(dtype)
    slopes = torch.rand(heads) if positions == "alibi" else None
    turns = torch.rand(len(lengths), half) * 6
    angles = (turns.cos(), turns.sin()) if positions == "rope" else None
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ALL:
            patch.setenv("BAICHUAN_KERNELS", name)
            own = copied(blocks)
            caches = PagedCaches(own, lengths)
            out = attend_newest(*packed.unbind(1), caches, 1, slopes=slopes, angles=angles)
            assert out.dtype == dtype
            results.append((out, own))
            last = len(lengths) - 1
            alone = attend_newest(
                *packed[last:].unbind(1),
                PagedCaches(copied(blocks[last:]), lengths[last:]),
                1,
                slopes=slopes,
                angles=None if angles is None else tuple(a[last:] for a in angles),
            )
            assert torch.equal(alone[0], out[last])
    for row, held in enumerate(lengths):
        query, key, value = packed[row]
        if angles is not None:
            query, key = (turned(x, angles[0][row], angles[1][row]).to(dtype) for x in (query, key))
        keys, values = joined(results[0][1][row], 1, held + 1)
        torch.testing.assert_close(keys[:, -1].double(), key.double(), rtol=0.01, atol=1e-5)
        assert torch.equal(values[:, -1], value)
        expected = exactly(query, keys, values, slopes)
        for out, _ in results:
            error = TOLERANCE[dtype] * (2 if angles is not None else 1)
            torch.testing.assert_close(out[row].double(), expected, rtol=0, atol=error)
    assert all(torch.equal(out, results[1][0]) for out, _ in results[2:])
    for _, own in results[1:]:
        for block, before in zip(chain(*own), chain(*blocks), strict=True):
            assert torch.equal(block[0].isnan(), before[0].isnan()), "another layer was written to"
            assert (block[1].isnan() != before[1].isnan()).sum() in (0, 2 * heads * width)


@settings(max_examples=40)
@given(
    st.integers(1, 9),
    st.sampled_from([2, 16, 34]),
    st.lists(st.tuples(st.integers(0, 140), st.integers(1, 9)), min_size=1, max_size=3),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from(["alibi", "rope"]),
    st.sampled_from(ALL),
)
def test_positions_together_are_those_one_by_one(heads, width, sequences, dtype, positions, name):
    blocks = [random_blocks(heads, held + new - 1, width, dtype) for held, new in sequences]
    rows = [(which, held + i) for which, (held, new) in enumerate(sequences) for i in range(new)]
    packed = torch.randn(len(rows), 3, heads, width).to(dtype)
    slopes = torch.rand(heads) if positions == "alibi" else None
    turns = torch.rand(len(rows), width // 2) * 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAICHUAN_KERNELS", name)

        def attended(own, some):
            angles = (turns[some].cos(), turns[some].sin()) if positions == "rope" else None
            caches = PagedCaches(
                [own[rows[row][0]] for row in some], [rows[row][1] for row in some]
            )
            return attend_newest(*packed[some].unbind(1), caches, 1, slopes=slopes, angles=angles)

        together, apart = copied(blocks), copied(blocks)
        out = attended(together, list(range(len(rows))))
        assert torch.equal(out, torch.cat([attended(apart, [row]) for row in range(len(rows))]))
    for one, other in zip(chain(*together), chain(*apart), strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("name", ALL)
def test_large_and_broken_numbers(monkeypatch, name):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    blocks = [random_blocks(2, 9, 16, torch.float32) for _ in "abc"]
    query, key, value = torch.randn(3, 3, 2, 16)
    query[0] *= 1e4  # all weight on one key
    blocks[1][0][0, 0, 0, 3] = torch.nan
    own = copied(blocks)
    out = attend_newest(query, key, value, PagedCaches(own, [9] * 3), 0)
    keys, values = joined(own[0], 0, 10)
    torch.testing.assert_close(out[0].double(), exactly(query[0], keys, values, None))
    assert out[1, 0].isnan().all()
    assert out[1, 1].isfinite().all() and out[2].isfinite().all()
    torch.set_num_threads(2)
    try:
        again = attend_newest(query, key, value, PagedCaches(copied(blocks), [9] * 3), 0)
        assert torch.equal(again.nan_to_num(7.0), out.nan_to_num(7.0))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ALL)
def test_what_a_steep_slope_hides_is_nothing(monkeypatch, name):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    blocks = random_blocks(1, 150, 8, torch.float32)
    for block in blocks[:2]:  # 128 positions, the nearest of which lies 22 behind the newest
        block[0, 1] = 1e30
    value = torch.randn(1, 1, 8)
    caches = PagedCaches([blocks], [150])
    query, key = torch.randn(2, 1, 1, 8)
    out = attend_newest(query, key, value, caches, 0, slopes=torch.tensor([9.0]))
    assert out.abs().max() < 10


def test_what_does_not_fit_is_refused():
    blocks = random_blocks(2, 9, 16, torch.float32)
    good = torch.randn(3, 1, 2, 16)

    def refused(match, query=good[0], key=good[1], value=good[2], layer=0, **settings):
        with pytest.raises(UsageError, match=match):
            attend_newest(query, key, value, PagedCaches([blocks], [9]), layer, **settings)

    refused(r"query is .*\[2, 2, 16\].*must be .*\[1, 2, 16\]", query=torch.randn(2, 2, 16))
    refused("key is torch.bfloat16", key=good[1].bfloat16())
    refused(r"value is .*\[1, 2, 8\]", value=good[2][..., :8])
    refused("layer is 2; the caches have 2", layer=2)
    refused(r"slopes is torch.float64 \[2\]", slopes=torch.rand(2).double())
    refused(r"slopes is torch.float32 \[3\]", slopes=torch.rand(3))
    refused(r"angles is torch.float32 \[1, 16\]", angles=(torch.rand(1, 16),) * 2)

    def no_cache(match, blocks, count):
        with pytest.raises(UsageError, match=match):
            PagedCaches([blocks], [count])

    no_cache("holds 64 positions and has no room", blocks, 64)
    for count in (-1, -(2**40), 1.0):
        no_cache("a count is a whole number from 0", blocks, count)
    no_cache("one list of one block or more", [], 0)
    no_cache("part of two sequences' caches, or twice of one", blocks * 2, 5)
    first, second = (random_blocks(2, 9, 16, torch.float32)[0] for _ in range(2))
    with pytest.raises(UsageError, match="part of two sequences' caches"):
        PagedCaches([blocks, [first, *blocks]], [5, 5])
    PagedCaches([[*blocks, first], [*blocks, second]], [64, 70])  # a full block is shared
    for tables, counts in (([], []), ([blocks], [1, 2])):
        with pytest.raises(UsageError, match="one list of one block or more"):
            PagedCaches(tables, counts)
    other = random_blocks(2, 9, 16, torch.float32)
    for tables, counts in (
        ([blocks, blocks], [30, 5]),
        ([blocks, blocks], [5, 5]),
        ([blocks, other, blocks], [5, 5, 6]),
    ):
        with pytest.raises(UsageError, match="follow each other"):
            PagedCaches(tables, counts)
    no_cache(r"must be \[layers, 2, heads, 64, width\]", [blocks[0][:, :, :, :32]], 9)
    no_cache("is torch.bfloat16", [blocks[0], blocks[0].bfloat16()], 70)
    no_cache("not contiguous", [blocks[0].transpose(3, 4).contiguous().transpose(3, 4)], 9)


@pytest.mark.parametrize("name", ALL)
def test_strided_slopes_are_the_same_slopes(monkeypatch, name):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    blocks, slopes = random_blocks(4, 9, 16, torch.float32), torch.rand(4, 3)
    packed = torch.randn(3, 1, 4, 16)
    results = [
        attend_newest(*packed, PagedCaches(copied([blocks]), [9]), 0, slopes=given)
        for given in (slopes[:, 1].contiguous(), slopes[:, 1])
    ]
    assert torch.equal(*results)
