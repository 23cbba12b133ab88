"""Texts of a batch found in its mask, and attention text by text against one mask for all."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.model.test_attention import LargestTensor, by_definition, inputs, visible
from torch.autograd.graph import saved_tensors_hooks

from baichuan.model.attention import slopes_on
from baichuan.model.segments import Segments, attend_segments, find_segments


def test_runs_of_a_batch():
    mask = torch.tensor([[1, 1, 2, 0, 0], [0, 3, 3, 3, 5]])
    assert find_segments(mask) == Segments(
        [2, 1, 2, 1, 3, 1], [True, True, False, False, True, True]
    )
    assert find_segments(mask.bool()) == Segments([3, 2, 1, 4], [True, False, False, True])
    # What is the same number in two rows is not the same text.
    assert find_segments(torch.tensor([[1, 1], [1, 0]])).lengths == [2, 1, 1]


def test_a_number_that_comes_back_is_no_run():
    assert find_segments(torch.tensor([[1, 2, 1]])) is None
    assert find_segments(torch.tensor([[1, 0, 1]])) is None
    assert find_segments(torch.tensor([[0, 2, 0]])) == Segments([1, 1, 1], [False, True, False])


@st.composite
def masks(draw):
    """[batch, positions] with texts of some lengths between and behind padding."""
    rows = draw(st.integers(1, 3))
    positions = draw(st.integers(1, 60) | st.integers(200, 330))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ends = torch.rand((rows, positions), generator=generator) < draw(st.sampled_from([0.02, 0.4]))
    numbers = 1 + ends.long().cumsum(1)
    return numbers.masked_fill(numbers == draw(st.integers(0, 4)), 0)


@given(
    mask=masks(),
    heads=st.sampled_from([1, 3, 6]),
    width=st.sampled_from([2, 8, 16]),
    alibi=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_texts_attend_as_the_whole_mask_says(mask, heads, width, alibi, dtype):
    assume(bool(mask.any()))
    batch, positions = mask.shape
    tensors = inputs(5, batch, heads, positions, positions, width, dtype)
    ours = [t.clone().requires_grad_() for t in tensors]
    exact = [t.double().requires_grad_() for t in tensors]
    slopes = slopes_on(heads, torch.device("cpu")) if alibi else None
    out = attend_segments(*ours, find_segments(mask), slopes=slopes)
    seen = visible(mask, positions, positions)
    rows = by_definition(*exact, alibi, seen | ~seen.any(-1, keepdim=True))
    text = (mask > 0)[:, None, :, None]
    assert not out.masked_select(~text).any()
    torch.testing.assert_close(out.double() * text, rows * text, atol=3e-5, rtol=1e-4)
    weights = torch.randn_like(rows) * text
    (out * weights.to(dtype)).sum().backward()
    (rows * weights).sum().backward()
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=6e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alibi", [True, False])
def test_memory_is_linear_in_both_directions(alibi, dtype):
    length, heads, width = 2048, 6, 8
    mask = torch.ones(1, length, dtype=torch.long)
    mask[:, 1500:], mask[:, 2000:] = 2, 0
    tensors = [t.requires_grad_() for t in inputs(6, 1, heads, length, length, width, dtype)]
    slopes = slopes_on(heads, torch.device("cpu")) if alibi else None
    kept = []
    with (
        LargestTensor() as largest,
        saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        attend_segments(*tensors, find_segments(mask), slopes=slopes).sum().backward()
    row = heads * (width + 8)
    # Of torch's kernel's own: one part of the scores for each thread.
    assert largest.nbytes <= 4 * row * length
    # Query, key, value and result, widened, and one number for each row and head.
    assert sum(kept) <= 5 * row * length
