"""From rows to a batch of tensors. Knows the rows' columns, no text and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: What cross entropy passes over.
IGNORED = -100
#: Lengths are rounded up to it: matrix units of GPUs and CPUs work in such tiles.
MULTIPLE = 8

Row = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to one length, a multiple of 8.

    Args:
        tokenizer: gives the id of padding.

    Each column becomes an int64 tensor [batch, length]: ids are filled up with padding, labels with
    -100, attention_mask and position_ids with 0. Rows without an attention_mask get one: 1 for
    tokens. `chosen_*` and `rejected_*` columns are padded to one length together.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pad rows that have the same columns."""
        longest = max(len(ids) for row in rows for ids in row.values())
        length = -(-longest // MULTIPLE) * MULTIPLE
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        for name in [name for name in columns if name.endswith("input_ids")]:
            mask = name.replace("input_ids", "attention_mask")
            columns.setdefault(mask, [[1] * len(ids) for ids in columns[name]])
        return {name: self._padded(name, column, length) for name, column in columns.items()}

    def _padded(self, name: str, column: Sequence[Sequence[int]], length: int) -> Tensor:
        fill = 0
        if name.endswith("labels"):
            fill = IGNORED
        elif name.endswith("input_ids"):
            fill = self.tokenizer.pad_token_id or 0
        padded = torch.full((len(column), length), fill, dtype=torch.long)
        for place, ids in zip(padded, column, strict=True):
            place[: len(ids)] = torch.as_tensor(ids, dtype=torch.long)
        return padded
