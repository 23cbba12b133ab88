"""Where a run begins: anew, or behind the last whole checkpoint of the same run.

The output directory's run.json holds what its run was asked for, digests of what it was given, and
whether it has ended.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baichuan.digest import checkpoint_digest
from baichuan.errors import CheckpointError, UsageError
from baichuan.files import write_at_one_stroke
from baichuan.json_files import read_object
from baichuan.language import phrase, translate
from baichuan.train import pickles
from baichuan.train.curve import CURVE
from baichuan.train.state import STATE, check_state
from baichuan.train.trainer import UNFINISHED
from baichuan.weights import read_headers

if TYPE_CHECKING:
    from datasets import Dataset

    from baichuan.train.data import Splits
    from baichuan.train.recipe import Recipe

_RUN = "run.json"
_NAME = re.compile(r"checkpoint-(\d+)")
#: Weights as each way of training saves them; global_step is DeepSpeed's.
_WEIGHTS = ("*.safetensors", "adapter_model*", "pytorch_model*", "global_step*")
#: What of transformers' arguments changes the weights that come out.
_DECIDING = (
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed"),
    *("fp16", "bf16", "label_smoothing_factor", "neftune_noise_alpha", "lr_scheduler_kwargs"),
    *("optim_args", "optim_target_modules", "train_sampling_strategy", "dataloader_drop_last"),
    *("average_tokens_across_devices", "load_best_model_at_end", "deepspeed", "fsdp"),
)
#: What the optimizer's saved state brings back, whatever the flags say.
_RESTORED = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
#: What is said of each of the `inputs` of a run.
_CHANGED = {
    "model": phrase("the model changed since"),
    "adapter": phrase("the adapter changed since"),
    "training_rows": phrase("the training rows changed since"),
    "evaluation_rows": phrase("the evaluation rows changed since"),
}
#: Rows that are hashed at once.
_BATCH = 1000


def starting_point(recipe: Recipe) -> Path | None:
    """Find the checkpoint to go on from; None begins anew.

    The same command goes on where it was stopped. `--resume_from_checkpoint` names a checkpoint, or
    says `true` for the last one whatever has changed since.

    Raises:
        UsageError: the directory holds another run, or one that has ended, and neither
            --overwrite_output_dir nor --resume_from_checkpoint was given.
        CheckpointError: the checkpoint that was named is not there or not whole, or there are only
            checkpoints without the state of the optimizer.
    """
    output = Path(recipe.training.output_dir)
    asked = recipe.training.resume_from_checkpoint
    if recipe.method.overwrite_output_dir:
        return None
    if asked and str(asked).lower() not in ("true", "last", "false"):
        return _named(Path(asked))
    last = last_checkpoint(output) or last_weights(output)
    if _goes_on_in_any_case(recipe):
        if last is None:
            raise UsageError(
                "There is no checkpoint in {directory} to go on from; leave out "
                "--resume_from_checkpoint to begin.",
                directory=output,
            )
        return _with_state(last)
    return _of_same_run(recipe, output, last, go_on=not asked)


def _goes_on_in_any_case(recipe: Recipe) -> bool:
    asked = recipe.training.resume_from_checkpoint
    return bool(asked) and str(asked).lower() != "false"


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
        return last and _with_state(last)
    raise _other_run(output, last, changed)


def _other_run(output: Path, last: Path | None, changed: list[str]) -> UsageError:
    return UsageError(
        "{directory} holds {checkpoint} of a run with other settings ({changed}). Give another "
        "--output_dir, --overwrite_output_dir to begin anew, or --resume_from_checkpoint true to "
        "go on from it all the same.",
        directory=output,
        checkpoint=last.name if last else "-",
        changed=", ".join(changed) or "?",
    )


def inputs(recipe: Recipe, directory: Path, splits: Splits) -> dict[str, str]:
    """Return digests of the rows and of the weights that a run begins with, by content."""
    given = {"model": checkpoint_digest(directory), "training_rows": rows_digest(splits.train)}
    if splits.evaluation is not None:
        given["evaluation_rows"] = rows_digest(splits.evaluation)
    if recipe.model.adapter_name_or_path is not None:
        given["adapter"] = checkpoint_digest(recipe.model.adapter_name_or_path)
    return given


def rows_digest(rows: Dataset) -> str:
    """Return the SHA-256 of the ids and labels of all rows, in their order."""
    total = hashlib.sha256()
    for table in rows.with_format("arrow").iter(_BATCH):
        for name in sorted(table.column_names):
            column = table.column(name).combine_chunks()
            for part in (column.value_lengths(), column.flatten()):
                total.update(part.to_numpy(zero_copy_only=False).tobytes())
    return total.hexdigest()


def check_inputs(recipe: Recipe, checkpoint: Path, given: Mapping[str, str]) -> list[str]:
    """Compare data and weights with those that a checkpoint was trained from.

    Returns:
        Sentences on what has changed, where --resume_from_checkpoint asks to go on all the same.

    Raises:
        UsageError: something has changed, and it does not.
    """
    earlier = _read(checkpoint.parent) or {}
    before = earlier.get("inputs", {})
    changed = [
        translate(_CHANGED[name])
        for name, digest in given.items()
        if before.get(name, digest) != digest
    ]
    if not _goes_on_in_any_case(recipe):
        if changed:
            raise _other_run(checkpoint.parent, checkpoint, changed)
        return []
    now = settings(recipe)
    changed = [*_differences(earlier, now), *changed]
    if not changed:
        return []
    notices = [
        translate(
            "{checkpoint} is of a run with other settings ({changed}).",
            checkpoint=checkpoint,
            changed=", ".join(changed),
        )
    ]
    old = earlier.get("settings", {})
    stay = [f"{name} {old[name]}" for name in _RESTORED if old.get(name, now[name]) != now[name]]
    if stay:
        notices.append(
            translate(
                "The optimizer's saved state keeps {stay}; the new values have no effect.",
                stay=", ".join(stay),
            )
        )
    return notices


def _named(checkpoint: Path) -> Path:
    if not is_whole(checkpoint):
        raise CheckpointError(
            "{checkpoint} is no whole checkpoint of a training run: files are missing or cut off. "
            "Name another, or say --resume_from_checkpoint true for the last whole one.",
            checkpoint=checkpoint,
        )
    return _with_state(checkpoint)


def _with_state(checkpoint: Path) -> Path:
    """Refuse a checkpoint behind which optimizer, schedule or random numbers would begin anew.

    Or whose files would run code, or are damaged.
    """
    missing = missing_state(checkpoint)
    if not missing:
        check_state(checkpoint)
        pickles.check(checkpoint)
        return checkpoint
    adapter = (checkpoint / "adapter_config.json").exists()
    raise CheckpointError(
        "{checkpoint} has weights, but no {missing} (--save_only_model leaves them out), so "
        "optimizer and schedule would begin anew and training cannot resume from it. Give "
        "--overwrite_output_dir to train anew; or, to train these weights further with a new "
        "optimizer and schedule, {flag} {checkpoint} and another --output_dir.",
        checkpoint=checkpoint,
        missing=", ".join(missing),
        flag="--adapter_name_or_path" if adapter else "--model_name_or_path",
    )


def missing_state(checkpoint: Path) -> list[str]:
    """Name what a checkpoint lacks, beside its weights, to resume the same run."""
    if any(checkpoint.glob("global_step*")):  # DeepSpeed keeps optimizer and schedule there
        needed = {"rng_state.pth": "rng_state*.pth"}
    else:
        needed = {
            "optimizer.pt": "optimizer*",
            "scheduler.pt": "scheduler.pt",
            "rng_state.pth": "rng_state*.pth",
        }
    return [name for name, pattern in needed.items() if not any(checkpoint.glob(pattern))]


def last_checkpoint(output: Path) -> Path | None:
    """Return the last whole checkpoint that a run can resume from."""
    return next((path for path in _whole(output) if not missing_state(path)), None)


def last_weights(output: Path) -> Path | None:
    """Return the last whole checkpoint of a run, be it weights alone."""
    return next(_whole(output), None)


def _whole(output: Path) -> Iterator[Path]:
    """Yield the checkpoints of a run, the last one first; half-written ones are passed over."""
    found = [path for path in output.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    found.sort(key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return filter(is_whole, found)


def is_whole(checkpoint: Path) -> bool:
    """Say whether the files of a checkpoint are there and none of them is cut off.

    Raises:
        CheckpointError: a file may not be read, which says nothing about its content.
    """
    try:
        read_object(checkpoint / STATE)
        for file in checkpoint.rglob("*.safetensors"):
            read_headers(file)
    except (OSError, ValueError) as error:  # CheckpointError is an OSError
        refused = error if isinstance(error, PermissionError) else error.__cause__
        if isinstance(refused, PermissionError):
            raise CheckpointError.unreadable(refused.filename, refused) from error
        return False
    if not any(path for pattern in _WEIGHTS for path in checkpoint.glob(pattern)):
        return False
    pickles = [*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")]
    return all(zipfile.is_zipfile(file) for file in pickles)


def begin(recipe: Recipe, resumed: Path | None, given: Mapping[str, str]) -> None:
    """Record what a run was asked for, and clear away what earlier ones left unfinished.

    Args:
        recipe: what was asked for.
        resumed: the checkpoint that it goes on from.
        given: what `inputs` returned.
    """
    output = Path(recipe.training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    for name in (_RUN, *CURVE):  # temporary files of a run that was killed while it wrote them
        for path in output.glob(f".{name}.*"):
            path.unlink()
    if recipe.method.overwrite_output_dir and resumed is None:
        for path in output.glob("checkpoint-*"):
            if _NAME.fullmatch(path.name):
                shutil.rmtree(path)
    _write(output, {"settings": settings(recipe), "inputs": given, "ended": False})


def end(recipe: Recipe) -> None:
    """Record that a run has ended and its result is written."""
    output = Path(recipe.training.output_dir)
    _write(output, {**(_read(output) or {}), "ended": True})


def settings(recipe: Recipe) -> dict[str, Any]:
    """Give what decides which weights come out of a run."""
    method = asdict(recipe.method)
    for name in ("plot_loss", "overwrite_output_dir"):
        del method[name]
    data = asdict(recipe.data)
    for name in ("overwrite_cache", "preprocessing_num_workers"):
        del data[name]
    training = recipe.training.to_dict()
    deciding = {name: training[name] for name in _DECIDING}
    processes = recipe.training.world_size
    return {**asdict(recipe.model), **data, **method, **deciding, "processes": processes}


def _differences(earlier: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    before = (earlier or {}).get("settings", {})
    return [
        f"{name}: {before[name]} → {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _read(output: Path) -> dict[str, Any] | None:
    try:
        content = read_object(output / _RUN)
    except CheckpointError:
        return None
    given = (content.get(key, {}) for key in ("settings", "inputs"))
    return content if all(isinstance(value, dict) for value in given) else None


def _write(output: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_at_one_stroke(output / _RUN, text.encode())
