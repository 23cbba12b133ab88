"""Attention against its definition in float64, with the whole [heads, queries, keys] bias."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baichuan.errors import UsageError
from baichuan.model import attention
from baichuan.model.attention import BIAS_CHANNELS, FEW_QUERIES, alibi_slopes, slopes_on

#: Largest error relative to the largest value, from float64 arithmetic on the same rounded inputs.
#: float32: the bias itself is of order 100, where a float32 is good to 4e-6. bfloat16 and float16:
#: two roundings, of the probabilities inside the kernel and of the result.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def attend(query, key, value, *, alibi, mask=None):
    slopes = slopes_on(query.shape[1], query.device) if alibi else None
    return attention.attend(query, key, value, slopes=slopes, mask=mask)


def visible(mask, queries, keys):
    """[batch or 1, queries, keys], straight from the docstring of `attend`."""
    position = torch.arange(keys - queries, keys)
    causal = torch.arange(keys)[None] <= position[:, None]
    if mask is None:
        return causal[None]
    if mask.ndim == 3:
        return (mask != 0) & causal
    own = mask[:, position]
    return (own[:, :, None] == mask[:, None]) & (mask[:, None] > 0) & causal


def by_definition(query, key, value, alibi, seen, rows=None):
    """Softmax attention in float64 for some rows (all by default); unseen rows come out as NaN."""
    queries, keys = query.shape[2], key.shape[2]
    rows = torch.arange(queries) if rows is None else rows
    query, key, value = query.double()[:, :, rows], key.double(), value.double()
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
    if alibi:
        slopes = torch.tensor(alibi_slopes(query.shape[1]), dtype=torch.float64)
        distance = torch.arange(keys)[None] - (rows[:, None] + keys - queries)
        scores = scores + slopes[:, None, None] * distance
    return scores.masked_fill(~seen[:, None, rows], -math.inf).softmax(-1) @ value


def inputs(seed, batch, heads, queries, keys, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, n, width) for n in (queries, keys, keys))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def some_mask(kind, seed, batch, queries, keys):
    generator = torch.Generator().manual_seed(seed)
    if kind is None:
        return None
    if kind == "pairs":
        return torch.randint(2, (batch, queries, keys), generator=generator)
    index = torch.arange(keys)[None]
    cut = torch.randint(keys, (batch, 2), generator=generator).sort().values
    if kind == "left":
        return (index >= cut[:, :1]).long()
    if kind == "right":
        return (index <= cut[:, :1]).long()
    segments = 1 + (index > cut[:, :1]).long() + (index > cut[:, 1:]).long()
    return segments.masked_fill(index == keys - 1, 0)


def assert_close(ours, exact, value, dtype, slack=1):
    """Compare the rows that see something."""
    assert ours.dtype == dtype
    assert ours.isfinite().all()
    known = ~exact.isnan()
    error = (ours.double() - exact)[known].abs().max().item() if known.any() else 0.0
    assert error <= slack * TOLERANCES[dtype] * value.double().abs().max().item()


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    heads=st.sampled_from([*range(1, 13), 40]),
    queries=st.integers(1, 40) | st.integers(41, 600),
    past=st.integers(0, 20) | st.integers(21, 300),
    width=st.sampled_from([2, 7, 8, 16, 24]),
    alibi=st.booleans(),
    kind=st.sampled_from([None, "left", "right", "segments", "pairs"]),
    dtype=st.sampled_from(list(TOLERANCES)),
)
@example(0, 2, 3, FEW_QUERIES, 5, 8, True, "left", torch.float32)
@example(0, 2, 3, FEW_QUERIES + 1, 5, 8, True, "left", torch.float32)
@example(0, 1, 5, attention.QUERY_BLOCK + 1, 0, 8, True, "segments", torch.float32)
@example(0, 1, 5, 1, 0, 8, True, None, torch.bfloat16)
def test_attend_is_softmax_attention(seed, batch, heads, queries, past, width, alibi, kind, dtype):
    if heads * queries * (queries + past) > 2_000_000:
        batch, heads = 1, 1 + heads % 5
    keys = past + queries
    query, key, value = inputs(seed, batch, heads, queries, keys, width, dtype)
    mask = some_mask(kind, seed, batch, queries, keys)
    ours = attend(query, key, value, alibi=alibi, mask=mask)
    exact = by_definition(query, key, value, alibi, visible(mask, queries, keys))
    assert_close(ours, exact, value, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("queries", "keys"), [(2049, 2049), (8192, 8192), (300, 65_000)])
def test_long_contexts(queries, keys, dtype):
    query, key, value = inputs(1, 1, 3, queries, keys, 16, dtype)
    rows = torch.cat([torch.arange(3), torch.randint(queries, (20,)), torch.tensor([queries - 1])])
    exact = by_definition(query, key, value, True, visible(None, queries, keys), rows)
    ours = attend(query, key, value, alibi=True)[:, :, rows]
    # At 8,192 keys the bias reaches 1,000, which float32 itself holds to 6e-5.
    assert_close(ours, exact, value, dtype, slack=4 if dtype == torch.float32 else 1)


@pytest.mark.parametrize("heads", [1, 7, 12, 40])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_bias_channels_hold_the_bias_in_any_dtype(heads, dtype, head_dim):
    keys, queries = 65_000, 2
    query = torch.zeros(1, heads, queries, head_dim, dtype=dtype)
    scale = head_dim**-0.5
    index = attention._index_channels(keys, keys - 1, query)
    slopes = attention._slope_channels(query, slopes_on(heads, query.device) / scale)
    assert index.dtype == slopes.dtype == dtype
    assert index.shape == (keys, BIAS_CHANNELS)
    bias = (slopes[0, :, 0].double() @ index.double().T) * scale
    slope = torch.tensor(alibi_slopes(heads), dtype=torch.float64)
    exact = slope[:, None] * torch.arange(1 - keys, 1)
    # float16 ends at 6e-8, so its smallest slopes are good to 2^-20 rather than 2^-24.
    precision = 2**-19 if dtype == torch.float16 else 2**-23
    assert ((bias - exact).abs() <= precision * exact.abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_beyond_16_bits_are_refused(dtype):
    query, key, value = inputs(0, 1, 1, 20, 65_400, 2, dtype)
    with pytest.raises(UsageError, match=r"65,400 tokens .* up to 65,280; .* float32"):
        attend(query, key, value, alibi=True)


@pytest.mark.parametrize(("queries", "dtype"), [(3, torch.bfloat16), (20, torch.float32)])
def test_longer_contexts_run_where_they_are_exact(queries, dtype):
    query, key, value = inputs(0, 1, 1, queries, 70_000, 4, dtype)
    exact = by_definition(query, key, value, True, visible(None, queries, 70_000))
    assert_close(attend(query, key, value, alibi=True), exact, value, dtype)


@pytest.mark.parametrize("queries", [3, 150, 300])
@pytest.mark.parametrize("kind", [None, "left", "segments", "pairs"])
@pytest.mark.parametrize("alibi", [True, False])
def test_gradients(queries, kind, alibi):
    keys = queries + (0 if kind is None else 10)
    tensors = inputs(2, 2, 3, queries, keys, 8)
    mask = some_mask(kind, 3, 2, queries, keys)
    seen = visible(mask, queries, keys)
    ours = [t.clone().requires_grad_() for t in tensors]
    exact = [t.double().requires_grad_() for t in tensors]
    known = seen.any(-1)[:, None, :, None].expand(2, 3, -1, 8)
    weights = torch.randn(known.shape)
    for leaves, out in (
        (ours, attend(*ours, alibi=alibi, mask=mask)),
        # A row that sees nothing would give NaN, so here it sees everything; it is not counted.
        (exact, by_definition(*exact, alibi, seen | ~seen.any(-1, keepdim=True))),
    ):
        (out * weights.to(out.dtype))[known].sum().backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=2e-5, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor, in bytes, that any operation gives, backward pass included."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if torch.is_tensor(leaf)]
        self.nbytes = max([self.nbytes, *(t.untyped_storage().nbytes() for t in tensors)])
        return out


@pytest.mark.parametrize("length", [2048, 8192])
@pytest.mark.parametrize("kind", [None, "segments"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_heads_by_length_by_length(length, kind, dtype):
    gradients = length == 2048
    tensors = inputs(4, 1, 6, length, length, 8, dtype)
    tensors = [t.requires_grad_(gradients) for t in tensors]
    with LargestTensor() as largest:
        out = attend(*tensors, alibi=True, mask=some_mask(kind, 4, 1, length, length))
        if gradients:
            out.sum().backward()
    # One block's mask is [256, length] float32; the widened keys are [6, length, 16].
    assert largest.nbytes <= max(256, 6 * 16) * length * 4 < length * length * 4


class Masks(TorchFunctionMode):
    """Collects the masks given to the fused kernel."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.dtypes.add(kwargs["attn_mask"].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("past", [0, 1, 700])
@pytest.mark.parametrize("fused", [True, False])
def test_branches_are_each_alone_behind_their_past(past, alibi, dtype, fused, monkeypatch):
    if not fused:  # as on a GPU
        monkeypatch.setattr(attention, "_attend_part", attention._attend_part_in_torch)
    lengths, counts = [30, 1, 17, 5], [30, 1, 4, 0]
    ends = list(itertools.accumulate(lengths))
    spans = list(zip([0, *ends], ends, strict=False))
    heads, width = 6, 8
    shape = (1, heads, past + ends[-1], width)
    query, key, value = (torch.randn(shape).to(dtype) for _ in range(3))
    slopes = slopes_on(heads, query.device) if alibi else None
    room = attention.room_for_branches(slopes)
    before = [F.pad(tensor[:, :, :past], (0, room)) for tensor in (key, value)]
    own = [tensor[:, :, past:] for tensor in (query, key, value)]
    found = attention.attend_branches(*own, *before, spans, counts, slopes=slopes)
    assert found.dtype == dtype
    nothing = attention.attend_branches(*own, *before, spans, [0] * 4, slopes=slopes)
    assert nothing.shape == (1, heads, 0, width)
    for (first, last), count, rows in zip(spans, counts, found.split(counts, 2), strict=True):
        one = [
            torch.cat([whole[:, :, :past], part[:, :, first:last]], 2)
            for whole, part in zip((key, value), own[1:], strict=True)
        ]
        alone = by_definition(
            own[0][:, :, first:last], *one, alibi, visible(None, last - first, past + last - first)
        )[:, :, last - first - count :]
        if count:
            error = (rows.double() - alone).abs().max() / alone.abs().max()
            assert error < 2 * TOLERANCES[dtype]


def test_gpu_kernels_get_the_bias_in_the_dtype_of_the_query():
    # The memory-efficient CUDA kernel refuses any other; "meta" stands for what is no CPU.
    tensors = [t.to("meta") for t in inputs(0, 1, 6, 1, 9, 8, torch.bfloat16)]
    with Masks() as masks:
        attend(*tensors, alibi=True)
    assert masks.dtypes == {torch.bfloat16}


def test_slopes_and_bias_of_the_original(reference):
    for heads, expected in json.loads((reference / "golden/alibi_slopes.json").read_text()).items():
        assert alibi_slopes(int(heads)) == pytest.approx(expected, rel=1e-12)
    golden = load_file(reference / "golden/alibi.safetensors")
    biases = [tensor for name, tensor in golden.items() if name.startswith("bias_40x")]
    assert len(biases) == 1
    keys = biases[0].shape[-1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(40)), golden["slopes_40"])
    query = torch.zeros(1, 40, 1, 8)
    last = attention._bias(query, keys, slopes_on(40, query.device), None)[0, :, 0]
    # The original counts from the first key, ours from the newest: equal under softmax.
    torch.testing.assert_close(last - last[:, :1], biases[0][:, -1], atol=1e-4, rtol=0)
    # Queries of zero leave the bias alone, so values that name the keys show the probabilities.
    value = torch.eye(keys).expand(1, 40, keys, keys)
    zero = torch.zeros(1, 40, keys, keys)
    weights = torch.cat(
        [
            attend(zero[:, :, :9], zero[:, :, :9], value[:, :, :9], alibi=True),
            attend(zero[:, :, 9:], zero, value, alibi=True),
        ],
        dim=2,
    )
    torch.testing.assert_close(weights[0], biases[0].softmax(-1), atol=1e-5, rtol=0)
