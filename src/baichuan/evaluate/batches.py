"""Which prompts go through a network side by side, and what they share. Knows token ids alone.

Batches depend on the prompts of a subject and on nothing else: not on what was computed before,
nor on how many processes share the work. So a run that was killed and resumed gives the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baichuan.evaluate.prompts import Prompt


@dataclass(frozen=True)
class Row:
    """A prompt's place in a batch.

    Attributes:
        index: of the prompt.
        ids: its tokens, whole.
        shared: how many of them, at the beginning, all prompts of its group have.
        group: what shares that beginning.
    """

    index: int
    ids: list[int]
    shared: int
    group: int

    @property
    def beginning(self) -> list[int]:
        """Tokens that are computed once for the group."""
        return self.ids[: self.shared]

    @property
    def rest(self) -> list[int]:
        """Tokens of this prompt alone, at least one."""
        return self.ids[self.shared :]


def rows_of(prompts: Sequence[Prompt], ids: Sequence[list[int]]) -> list[Row]:
    """Find what prompts share: those of one group lie together, short ones first.

    The common beginning is looked for among tokens, not in the text, since a tokenizer may join
    characters across its end: each prompt keeps exactly the ids that it has alone.
    """
    groups: dict[object, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.beginning, []).append(index)
    rows = []
    for number, members in enumerate(groups.values()):
        shared = 0
        if len(members) > 1:
            shared = _common([ids[index] for index in members])
        members.sort(key=lambda index: len(ids[index]))  # stable
        rows += [Row(index, ids[index], shared, number) for index in members]
    return rows


def _common(rows: Sequence[list[int]]) -> int:
    """Count the tokens that all rows begin with; each keeps one that is its own."""
    least, most = min(rows), max(rows)  # what these two share, all between them share
    most_allowed = min(map(len, rows)) - 1
    for place in range(most_allowed):
        if least[place] != most[place]:
            return place
    return most_allowed


def packed(rows: Sequence[Row], budget: int, *, padded: bool = False) -> Iterator[list[Row]]:
    """Cut rows into batches of up to `budget` tokens, counting what each has alone.

    Args:
        rows: from `rows_of`.
        budget: tokens; a longer row is a batch of its own.
        padded: whether all rows of a batch take the room of its longest, and share one beginning.
    """
    batch: list[Row] = []
    longest = 0
    for row in rows:
        size = len(row.rest)
        grown = max(longest, size)
        total = grown * (len(batch) + 1) if padded else sum(len(r.rest) for r in batch) + size
        apart = padded and batch and batch[-1].group != row.group
        if batch and (total > budget or apart):
            yield batch
            batch, grown = [], size
        batch.append(row)
        longest = grown
    if batch:
        yield batch
