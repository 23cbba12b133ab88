"""From a recipe to the rows that are learned: read, checked, encoded, split, packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baichuan.train.collate import Collator

if TYPE_CHECKING:
    from datasets import Dataset

    from baichuan.model.tokenizer import BaichuanTokenizer
    from baichuan.train.recipe import Recipe


__all__ = ["Collator", "Splits", "load"]


@dataclass(frozen=True)
class Splits:
    """Rows ready for training.

    Attributes:
        train: `input_ids` and `labels` (-100 = not learned), lists of int; packed rows also have
            `attention_mask`, the segment numbers 1, 2, 3..., and `position_ids`, which restart with
            each segment. For dpo: `chosen_input_ids`, `chosen_labels`, `rejected_input_ids`,
            `rejected_labels`.
        evaluation: the same, never packed; None without any.
        notices: what the user should know, as sentences.
    """

    train: Dataset
    evaluation: Dataset | None
    notices: tuple[str, ...]


def load(recipe: Recipe, tokenizer: BaichuanTokenizer) -> Splits:
    """Prepare all rows.

    Raises:
        DataError: a file is missing or broken, or rows are: names file and row.
        UsageError: a data set that there is not, or nothing to evaluate on.
        DownloadError: a data set could not be fetched.
    """
    raise NotImplementedError
