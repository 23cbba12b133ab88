"""Where a run begins: anew, or behind the last whole checkpoint of the same run.

The output directory's run.json says what its run was asked for and whether it has ended. Knows
directories; no network and no trainer.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baichuan.errors import CheckpointError, UsageError
from baichuan.files import write_at_one_stroke
from baichuan.train.trainer import UNFINISHED
from baichuan.weights import read_headers

if TYPE_CHECKING:
    from baichuan.train.recipe import Recipe

_RUN = "run.json"
_NAME = re.compile(r"checkpoint-(\d+)")
#: What of transformers' arguments changes the weights that come out.
_DECIDING = (
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed"),
    *("fp16", "bf16", "label_smoothing_factor", "neftune_noise_alpha"),
)


def starting_point(recipe: Recipe) -> Path | None:
    """Find the checkpoint to go on from; None begins anew.

    The same command goes on where it was stopped. `--resume_from_checkpoint` names a checkpoint, or
    says `true` for the last one whatever has changed since.

    Raises:
        UsageError: the directory holds another run, or one that has ended, and neither
            --overwrite_output_dir nor --resume_from_checkpoint was given.
        CheckpointError: the checkpoint that was named is not there or not whole.
    """
    output = Path(recipe.training.output_dir)
    asked = recipe.training.resume_from_checkpoint
    if recipe.method.overwrite_output_dir:
        return None
    if asked and str(asked).lower() not in ("true", "last", "false"):
        return _named(Path(asked))
    last = last_checkpoint(output)
    if asked and str(asked).lower() != "false":
        if last is None:
            raise UsageError(
                "There is no checkpoint in {directory} to go on from; leave out "
                "--resume_from_checkpoint to begin.",
                directory=output,
            )
        return last
    return _of_same_run(recipe, output, last, go_on=not asked)


def _of_same_run(recipe: Recipe, output: Path, last: Path | None, go_on: bool) -> Path | None:
    earlier = _read(output)
    if last is None and (earlier is None or not earlier.get("ended")):
        return None
    if earlier is not None and earlier.get("ended"):
        raise UsageError(
            "{directory} holds a run that has ended. Give another --output_dir, or "
            "--overwrite_output_dir to train anew.",
            directory=output,
        )
    changed = _differences(earlier, settings(recipe))
    if go_on and earlier is not None and not changed:
        return last
    raise UsageError(
        "{directory} holds {checkpoint} of a run with other settings ({changed}). Give another "
        "--output_dir, --overwrite_output_dir to begin anew, or --resume_from_checkpoint true to "
        "go on from it all the same.",
        directory=output,
        checkpoint=last.name if last else "-",
        changed=", ".join(changed) or "?",
    )


def _named(checkpoint: Path) -> Path:
    if not is_whole(checkpoint):
        raise CheckpointError(
            "{checkpoint} is no whole checkpoint of a training run: files are missing or cut off. "
            "Name another, or say --resume_from_checkpoint true for the last whole one.",
            checkpoint=checkpoint,
        )
    return checkpoint


def last_checkpoint(output: Path) -> Path | None:
    """Give the last whole checkpoint of a run; half-written ones are passed over."""
    found = [path for path in output.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    found.sort(key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next(filter(is_whole, found), None)


def is_whole(checkpoint: Path) -> bool:
    """Say whether the files of a checkpoint are there and none of them is cut off.

    Raises:
        CheckpointError: a file may not be read, which says nothing about its content.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        for file in checkpoint.rglob("*.safetensors"):
            read_headers(file)
    except (OSError, ValueError) as error:  # CheckpointError is an OSError
        refused = error if isinstance(error, PermissionError) else error.__cause__
        if isinstance(refused, PermissionError):
            raise CheckpointError.unreadable(refused.filename, refused) from error
        return False
    pickles = [*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")]
    return all(zipfile.is_zipfile(file) for file in pickles)


def begin(recipe: Recipe, resumed: Path | None) -> None:
    """Record what a run was asked for, and clear away what earlier ones left unfinished."""
    output = Path(recipe.training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    if recipe.method.overwrite_output_dir and resumed is None:
        for path in output.glob("checkpoint-*"):
            if _NAME.fullmatch(path.name):
                shutil.rmtree(path)
    _write(output, settings(recipe), ended=False)


def end(recipe: Recipe) -> None:
    """Record that a run has ended and its result is written."""
    _write(Path(recipe.training.output_dir), settings(recipe), ended=True)


def settings(recipe: Recipe) -> dict[str, Any]:
    """Give what decides which weights come out of a run."""
    method = asdict(recipe.method)
    for name in ("plot_loss", "overwrite_output_dir"):
        del method[name]
    data = asdict(recipe.data)
    for name in ("overwrite_cache", "preprocessing_num_workers"):
        del data[name]
    training = recipe.training.to_dict()
    return {**asdict(recipe.model), **data, **method, **{n: training[n] for n in _DECIDING}}


def _differences(earlier: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    before = (earlier or {}).get("settings", {})
    return [
        f"{name}: {before[name]} → {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _read(output: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((output / _RUN).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(output: Path, now: Mapping[str, Any], *, ended: bool) -> None:
    content = {"settings": now, "ended": ended}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_at_one_stroke(output / _RUN, text.encode())
