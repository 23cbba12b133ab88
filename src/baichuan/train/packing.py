"""Several short rows in one, each a segment of its own. Knows ids and lengths, no text.

A packed row's attention_mask holds the number of each token's segment, 1, 2, 3..., which is what
attention takes (model/attention.py): tokens see their own segment alone. Positions restart in each
segment, for RoPE; ALiBi knows distances only, which are right by themselves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from baichuan.train.collate import IGNORED

Columns = Mapping[str, Sequence[Sequence[int]]]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute rows among bins, best-fit decreasing: at most 22 % more bins than the fewest.

    Args:
        lengths: of the rows, none above `capacity`.
        capacity: of each bin.

    Returns:
        The rows' indices, bin by bin; in a bin, and among bins by their first row, in order.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room and bin, sorted
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = bisect_left(free, (lengths[row], 0))
        if place == len(free):
            free.append((capacity, len(bins)))  # the emptiest: it sorts last
            bins.append([])
        room, chosen = free.pop(place)
        bins[chosen].append(row)
        insort(free, (room - lengths[row], chosen))
    return sorted(sorted(members) for members in bins)


def pack(columns: Columns, capacity: int) -> dict[str, list[list[int]]]:
    """Pack rows of `input_ids` and `labels`.

    The first label of each segment is not learned: it would be predicted from the segment before.
    """
    packed: dict[str, list[list[int]]] = {
        "input_ids": [],
        "labels": [],
        "attention_mask": [],
        "position_ids": [],
    }
    for members in best_fit([len(ids) for ids in columns["input_ids"]], capacity):
        for column in packed.values():
            column.append([])
        for segment, row in enumerate(members, 1):
            ids, labels = columns["input_ids"][row], columns["labels"][row]
            packed["input_ids"][-1] += ids
            packed["labels"][-1] += [IGNORED, *labels[1:]]
            packed["attention_mask"][-1] += [segment] * len(ids)
            packed["position_ids"][-1] += range(len(ids))
    return packed
