"""trainer_state.json of a checkpoint, checked before transformers reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from baichuan.errors import CheckpointError
from baichuan.json_files import read_object

STATE = "trainer_state.json"
_NUMBER, _NONE = (int, float), type(None)
#: What the Trainer, and the loss curve, read of a state; the other fields are written alone.
_TYPES: dict[str, tuple[type, ...]] = {
    "epoch": _NUMBER,
    "global_step": (int,),
    "max_steps": (int,),
    "num_train_epochs": (int,),
    "num_input_tokens_seen": (int,),
    "total_flos": _NUMBER,
    "train_batch_size": (int, _NONE),
    "logging_steps": (*_NUMBER, _NONE),
    "eval_steps": (*_NUMBER, _NONE),
    "save_steps": (*_NUMBER, _NONE),
    "log_history": (list,),
    "best_metric": (*_NUMBER, _NONE),
    "best_global_step": (int, _NONE),
    "best_model_checkpoint": (str, _NONE),
    "stateful_callbacks": (dict,),
}
_CALLBACK = "TrainerControl"
_STEPS = 2**53


def check_state(checkpoint: Path) -> None:
    """Check that the Trainer can go on from a checkpoint's state.

    Raises:
        CheckpointError: the file is not JSON, or a key is missing, unknown or of another type.
    """
    path = checkpoint / STATE
    content = read_object(path, CheckpointError)
    known = {field.name for field in fields(TrainerState)}
    for key in content.keys() - known:
        raise _wrong(path, key, content[key])
    for key, types in _TYPES.items():
        if not _is_allowed(content.get(key), types):
            raise _wrong(path, key, content.get(key))
    for record in content["log_history"]:
        if not _is_record(record):
            raise _wrong(path, "log_history", record)
    if not isinstance(content["stateful_callbacks"].get(_CALLBACK), Mapping):
        raise _wrong(path, f"stateful_callbacks.{_CALLBACK}", content["stateful_callbacks"])


def _is_allowed(value: Any, types: tuple[type, ...]) -> bool:
    """Check a value's type, and that a number is one, not negative and no more than a float's."""
    if type(value) not in types:
        return False
    return type(value) is not int or 0 <= value < _STEPS


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not _is_allowed(record.get("step"), (int,)):
        return False
    losses = [record[name] for name in ("loss", "eval_loss") if name in record]
    return all(type(loss) in _NUMBER and math.isfinite(loss) for loss in losses)


def _wrong(path: Path, key: str, value: object) -> CheckpointError:
    return CheckpointError(
        "{path} is no state of a training: {key} is {value!r}. Name another checkpoint with "
        "--resume_from_checkpoint, or train anew with --overwrite_output_dir.",
        path=path,
        key=key,
        value=value,
    )
