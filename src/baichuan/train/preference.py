"""Learning from preferences: trl's DPO on rows that are tokens already. Needs trl."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from baichuan.train.trainer import Careful

if TYPE_CHECKING:
    from datasets import Dataset

    from baichuan.train.recipe import MethodArguments

_COLUMNS = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")


class PreferenceTuner(Careful, DPOTrainer):  # type: ignore[misc]  # untyped base
    """Trains on pairs of answers, a chosen and a rejected one."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return cast("Dataset", dataset.map(_parted, remove_columns=list(_COLUMNS)))


def _parted(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """Part the prompt, which is not learned, from both answers."""
    prompt = next(i for i, label in enumerate(row["chosen_labels"]) if label != -100)
    return {
        "prompt_ids": row["chosen_input_ids"][:prompt],
        "chosen_ids": row["chosen_input_ids"][prompt:],
        "rejected_ids": row["rejected_input_ids"][prompt:],
    }


def preference_arguments(training: TrainingArguments, method: MethodArguments) -> DPOConfig:
    """Give trl's arguments: those of the Trainer, and DPO's own."""
    losses, weights = [method.pref_loss], [1.0]
    if method.pref_ftx:
        losses, weights = [*losses, "sft"], [*weights, method.pref_ftx]
    given = {f.name: getattr(training, f.name) for f in fields(TrainingArguments) if f.init}
    return DPOConfig(
        **given,
        beta=method.pref_beta,
        loss_type=losses,
        loss_weights=weights,
        max_length=None,  # rows are cut already, where it does no harm
    )
