"""Where one text ends and the next begins in a batch: what a mask of segment numbers says.

Attention that knows it goes text by text: no mask, no work between texts or on padding, and each
result is that of the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baichuan.model.attention import attend


@dataclass(frozen=True)
class Segments:
    """Runs of positions of a batch, its rows one after another.

    Attributes:
        lengths: positions of each run; their sum is batch x positions.
        seen: whether a run is text; else it is padding.
    """

    lengths: list[int]
    seen: list[bool]


def find_segments(mask: Tensor) -> Segments | None:
    """Read a mask [batch, positions] of segment numbers, where 0 is padding.

    Returns:
        None if a number comes back behind another one: such a text is no run.
    """
    begins = torch.ones_like(mask, dtype=torch.bool)
    begins[:, 1:] = mask[:, 1:] != mask[:, :-1]
    where = begins.flatten().nonzero()[:, 0]
    # One wait for a GPU, whatever the number of segments.
    firsts, numbers = torch.stack([where, mask.flatten()[where].to(where.dtype)]).tolist()
    texts = [(first // mask.shape[1], n) for first, n in zip(firsts, numbers, strict=True) if n > 0]
    if len(set(texts)) < len(texts):
        return None
    ends = [*firsts[1:], mask.numel()]
    lengths = [end - first for first, end in zip(firsts, ends, strict=True)]
    return Segments(lengths, [number > 0 for number in numbers])


def attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, slopes: Tensor | None
) -> Tensor:
    """Attend causally within each text of a batch, as `attend` does with its mask of numbers.

    Args:
        query, key, value: [batch, heads, positions, head_dim].
        segments: of this batch.
        slopes: as for `attend`.

    Returns:
        [batch, heads, positions, head_dim]; 0 where there is padding.
    """
    batch, heads, positions, width = query.shape
    # `split`, not slices: the gradient of a slice is as long as the whole.
    parts = (
        torch.split(tensor.transpose(1, 2).reshape(-1, heads, width), segments.lengths)
        for tensor in (query, key, value)
    )
    results = []
    for seen, *rows in zip(segments.seen, *parts, strict=True):
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in rows)
        results.append(attend(q, k, v, slopes=slopes) if seen else torch.zeros_like(q))
    flat = torch.cat(results, dim=2)
    return flat.view(heads, batch, positions, width).transpose(0, 1)
