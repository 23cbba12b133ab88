"""Causal attention with ALiBi in linear memory. Knows tensors only: no weights, no cache, no model.

ALiBi (Press et al. 2021, arXiv 2108.12409) adds `slope[h] * (j - i)` to the score of query i and
key j. Softmax does not see what is constant along a row, so `slope[h] * (j - c)` gives the same
result for any c, and this bias depends on the key alone. Two ways to hand such a bias to a fused
kernel without a [heads, L, L] tensor:

- Few queries (decoding): a float mask [heads, queries, keys], which is small then. CPUs take it in
  float32; GPU kernels want the query's dtype, and the mask is 0 at the newest key, so what it
  rounds most is what counts least.
- Many queries: extra channels. If the key carries its index j in a channel in which the query
  carries slope[h], the dot product adds the bias by itself. Indices and slopes are split into
  parts that bfloat16 and float16 hold exactly, so the bias is as exact as in float32.

What remains for the mask is one [queries, keys] boolean without heads, made a block at a time.
Where a batch holds several texts or padding, and no cache, there is no mask at all: each text
attends alone (segments.py). The backward of torch's fused kernels is linear in memory too: it keeps
query, key, value, result and one number a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.errors import UsageError

#: Queries that share one mask. 256 was the fastest on CPUs; it bounds the mask's memory.
QUERY_BLOCK = 256
#: Up to this many queries a float bias with heads is cheaper than copying all keys to widen them.
FEW_QUERIES = 16
#: Channels that carry the bias: 3 parts of the slope times 2 digits of the index, filled up to 8.
BIAS_CHANNELS = 8
_SLOPE_PARTS = 3
_INDEX_BASE = 256
#: Farthest key that two digits of base 256 reach when each has the 8 bits of bfloat16.
_FARTHEST_KEY = 255 * _INDEX_BASE


def alibi_slopes(heads: int) -> list[float]:
    """Give the slope of each head, double precision.

    A power of two n has 2^(-8(i+1)/n). Any other count takes the slopes of the largest power of two
    below it, then every other one of the next power's (the interleaved slopes of the ALiBi
    authors' `get_slopes`, which Baichuan-13B uses for its 40 heads).
    """
    base = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / base) for i in range(base)]
    if base == heads:
        return slopes
    return slopes + alibi_slopes(2 * base)[0::2][: heads - base]


@lru_cache(maxsize=64)
def slopes_on(heads: int, device: torch.device) -> Tensor:
    """Give the slopes as float32 [heads]; one tensor for all layers, not to be written to."""
    return torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)


def room_for_bias(queries: int, slopes: Tensor | None) -> int:
    """Give the number of channels that `attend` adds to keys and values for so many queries."""
    return BIAS_CHANNELS if slopes is not None and queries > FEW_QUERIES else 0


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    slopes: Tensor | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attend causally; the last query belongs to the last key.

    Args:
        query: [batch, heads, queries, head_dim], the newest positions.
        key, value: [batch, heads, keys, head_dim], keys >= queries. Both may have `room_for_bias`
            behind head_dim, filled with 0: it is written to then, and nothing is copied.
        slopes: float32 [heads], ALiBi's (`slopes_on`); None for none.
        mask: None (everything earlier is visible); [batch, keys] integers, where j is visible from
            i if both are positive and equal (1 = token, 0 = padding, 1, 2, 3... = packed segments,
            as the original's); or [batch, queries, keys], non-zero = visible.

    Returns:
        [batch, heads, queries, head_dim] in the dtype of `query`. Rows of padding are finite and
        without meaning.

    Raises:
        UsageError: ALiBi, more than `FEW_QUERIES` queries, and a key so far away that bfloat16 or
            float16 cannot hold its distance (65,280 and more).
    """
    queries, keys = query.shape[2], key.shape[2]
    scale = 1.0 / math.sqrt(query.shape[3])
    if queries <= FEW_QUERIES:
        visible = None
        if queries > 1 or mask is not None:
            visible = _visible(mask, slice(0, queries), keys - queries, query.device)
        bias = visible if slopes is None else _bias(query, keys, slopes, visible)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    if slopes is None:
        return _attend_blocks(query, key, value, mask, scale)
    width = query.shape[3]
    wide_query = torch.cat([query, _slope_channels(query, slopes / scale)], dim=3)
    # Counted from the middle of the new positions: small numbers round least.
    indices = _index_channels(keys, keys - queries // 2, key)
    if key.shape[3] == width:
        # The fused CPU and GPU kernels want one width for all three; without it they fall back to
        # a path that materialises all scores.
        key = torch.cat([key, indices.expand(*key.shape[:3], -1)], dim=3)
        value = F.pad(value, (0, BIAS_CHANNELS))
    else:
        key[..., width:] = indices
    return _attend_blocks(wide_query, key, value, mask, scale)[..., :width]


def attend_branches(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    spans: Sequence[tuple[int, int]],
    counts: Sequence[int],
    *,
    slopes: Tensor | None,
) -> Tensor:
    """Attend from sequences that go on behind one past: each sees that and itself, causally.

    The past is attended to once for all (cascade attention; Juravsky et al. 2024, arXiv
    2402.05099): two softmaxes over parts of the keys join by the logarithms of their sums.

    Args:
        query, key, value: [1, heads, positions, head_dim], the sequences behind one another.
        past_key, past_value: [1, heads, past, head_dim + room_for_branches]; the keys are written
            to behind head_dim. past may be 0.
        spans: first and last + 1 position of each sequence.
        counts: how many queries of each sequence, its last ones, are wanted.
        slopes: as for `attend`.

    Returns:
        [1, heads, sum(counts), head_dim] in the dtype of `query`.
    """
    width = query.shape[3]
    scale = 1.0 / math.sqrt(width)
    longest = max(last - first for first, last in spans)
    mask = _own_bias(longest, slopes, query)
    asked, results = [], []
    for (first, last), count in zip(spans, counts, strict=True):
        if not count:  # the kernel would divide by it
            continue
        asked.append(query[:, :, last - count : last])
        own, length = slice(first, last), last - first
        seen = mask[:, :, length - count : length, :length]
        results.append(_attend_part(asked[-1], key[:, :, own], value[:, :, own], seen, scale))
    if not results:
        return query[:, :, :0]
    out, sums = (torch.cat(parts, dim=2) for parts in zip(*results, strict=True))
    past = past_key.shape[2]
    if not past:
        return out
    everything = sum(counts) == query.shape[2]
    rows = query if everything else torch.cat(asked, dim=2)
    if slopes is not None:
        rows = torch.cat([rows, _slope_channels(rows, slopes / scale)], dim=3)
        past_key[..., width:] = _index_channels(past, past, past_key)
    before, before_sums = _attend_part(rows, past_key, past_value, None, scale)
    share = torch.sigmoid(before_sums - sums)[..., None].to(out.dtype)
    return torch.lerp(out, before[..., :width], share)


def room_for_branches(slopes: Tensor | None) -> int:
    """Give the number of channels that `attend_branches` wants behind those of the past."""
    return 0 if slopes is None else BIAS_CHANNELS


def _attend_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to some of the keys.

    Returns:
        The result, and the float32 logarithms of softmax's sums [1, heads, queries].
    """
    if query.device.type != "cpu":
        return _attend_part_in_torch(query, key, value, mask, scale)
    # What scaled_dot_product_attention calls on a CPU; that gives the first of the two alone.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    part: tuple[Tensor, Tensor] = kernel(query, key, value, attn_mask=mask, scale=scale)
    return part


def _attend_part_in_torch(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Do the same with all scores in memory at once."""
    scores = (query @ key.mT).float() * scale
    if mask is not None:
        scores = scores + mask
    sums = scores.logsumexp(dim=3)
    return (scores - sums[..., None]).exp().to(value.dtype) @ value, sums


def _own_bias(length: int, slopes: Tensor | None, like: Tensor) -> Tensor:
    """Causal mask and ALiBi of a sequence, counted from its first key: [1, heads or 1, n, n]."""
    index = torch.arange(length, device=like.device)
    later = index > index[:, None]
    slopes = torch.zeros(1, device=like.device) if slopes is None else slopes
    bias = (slopes[:, None] * index)[None, :, None, :]
    return bias.masked_fill(later, float("-inf"))


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attend without bias, `QUERY_BLOCK` queries at a time, to the keys up to each block's end."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None and queries == keys:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    past = keys - queries
    blocks = []
    for first in range(0, queries, QUERY_BLOCK):
        rows = slice(first, min(first + QUERY_BLOCK, queries))
        seen = past + rows.stop
        blocks.append(
            F.scaled_dot_product_attention(
                query[:, :, rows],
                key[:, :, :seen],
                value[:, :, :seen],
                attn_mask=_visible(mask, rows, past, query.device),
                scale=scale,
            )
        )
    return torch.cat(blocks, dim=2)


def _visible(mask: Tensor | None, rows: slice, past: int, device: torch.device) -> Tensor:
    """Which keys the new positions `rows` see: boolean [batch or 1, 1, rows, past + rows.stop].

    A query that sees nothing (padding) sees itself instead: its row would be NaN.
    """
    seen = past + rows.stop
    here = torch.arange(past + rows.start, seen, device=device)[:, None]
    there = torch.arange(seen, device=device)[None, :]
    causal = there <= here
    if mask is None:
        return causal[None, None]
    if mask.ndim == 3:
        allowed = mask[:, rows, :seen] != 0
    else:
        segment = mask[:, past + rows.start : seen, None]
        other = mask[:, None, :seen]
        allowed = (segment == other) & (other > 0)
    allowed = allowed & causal
    nothing = ~allowed.any(dim=2, keepdim=True)
    return (allowed | (nothing & (there == here)))[:, None]


def _bias(query: Tensor, keys: int, slopes: Tensor, visible: Tensor | None) -> Tensor:
    """ALiBi as a float mask [batch or 1, heads, queries or 1, keys]; 0 at the newest key."""
    index = torch.arange(1 - keys, 1, dtype=torch.float32, device=query.device)
    bias = (slopes[:, None] * index)[None, :, None, :]
    if visible is not None:
        bias = bias.masked_fill(~visible, float("-inf"))
    small = query.device.type == "cpu" and query.element_size() <= bias.element_size()
    return bias if small else bias.to(query.dtype)


def _slope_channels(query: Tensor, rest: Tensor) -> Tensor:
    """Slopes, divided by the kernel's scale and split into parts: [batch, heads, queries, 8].

    Each part keeps the leading bits that the dtype holds, the next part what is left.
    """
    channels = []
    for _ in range(_SLOPE_PARTS):
        part = rest.to(query.dtype)
        rest = rest - part.float()
        channels += [part, part]
    channels += [torch.zeros_like(channels[0])] * (BIAS_CHANNELS - len(channels))
    table = torch.stack(channels, dim=1)
    return table[None, :, None, :].expand(query.shape[0], -1, query.shape[2], -1)


def _index_channels(keys: int, origin: int, key: Tensor) -> Tensor:
    """Key indices counted from `origin`, as two digits of base 256: [keys, 8].

    Multiples of 256 up to 65,280 and digits below 256 are exact in bfloat16 and float16.
    """
    if origin > _FARTHEST_KEY and key.element_size() < 4:
        dtype = str(key.dtype).removeprefix("torch.")
        raise UsageError(
            "A sequence of {length:,} tokens is too long for {dtype}, which holds ALiBi's "
            "distances up to {farthest:,}; shorten it or use float32.",
            length=keys,
            dtype=dtype,
            farthest=_FARTHEST_KEY,
        )
    index = torch.arange(keys, device=key.device) - origin
    low = index.remainder(_INDEX_BASE)
    pair = torch.stack([index - low, low], dim=1).to(key.dtype)
    filler = BIAS_CHANNELS - 2 * _SLOPE_PARTS
    return F.pad(pair.repeat(1, _SLOPE_PARTS), (0, filler))
