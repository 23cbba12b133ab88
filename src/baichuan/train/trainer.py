"""transformers' Trainer, made careful: whole checkpoints, no training on NaN, tokens a second.

`Careful` is a mix-in, so that trl's trainers (preference.py) are careful too. Knows no recipe.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import DistributedType, PartialState
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import rotate_checkpoints

from baichuan.errors import BaichuanError, TrainingError
from baichuan.files import weights_by_umask
from baichuan.language import translate
from baichuan.model.loss import IGNORED
from baichuan.train import pickles
from baichuan.train.state import STATE

#: Where a checkpoint grows until it is whole; whatever is in it is of a run that was killed.
UNFINISHED = ".unfinished"


class Careful:
    """Guards around a Trainer; stands before it among the bases.

    A checkpoint is written to a directory of its own and renamed when it is whole and on the disk,
    so that a killed run leaves whole checkpoints alone.
    """

    args: Any
    state: Any
    model: Any
    accelerator: Any
    callback_handler: Any
    _saving = False
    _tokens = 0
    _since = 0.0

    def create_accelerator_and_postprocess(self) -> None:
        """Set up the processes as the Trainer does; FSDP on CPUs too, which torch has."""
        if self.args.fsdp and self.args.use_cpu:
            # Else accelerate, whose list for FSDP has all kinds of devices but these, leaves the
            # weights whole and says nothing.
            PartialState().distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *given: Any) -> None:
        with _resuming(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *given)  # type: ignore[misc]

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Prepare as the Trainer does; engines load weights and optimizer here.

        Raises:
            CheckpointError: files that are not of this training, or that would run code.
        """
        with _resuming(resume_from_checkpoint):
            return super()._prepare_for_training(  # type: ignore[misc]
                max_steps, train_dataloader, resume_from_checkpoint
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _resuming(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Load the best checkpoint as the Trainer does; a resumed run was told where it is."""
        best = self.state.best_model_checkpoint
        with _resuming(best):
            pickles.check(Path(best))
            super()._load_best_model()  # type: ignore[misc]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *given: Any) -> Tensor:
        """Compute a batch's loss and gradients as the Trainer does; count its tokens.

        Raises:
            TrainingError: the loss is no number.
        """
        if not self._tokens:
            self._since = time.monotonic()
        self._tokens += _real_tokens(inputs)
        loss = cast(Tensor, super().training_step(model, inputs, *given))  # type: ignore[misc]
        if not math.isfinite(loss.item()):
            raise self._diverged()
        return loss

    def log(self, logs: dict[str, float], *given: Any) -> None:
        """Record figures as the Trainer does; to those of a training step, add tokens a second."""
        if "loss" in logs and self._tokens:
            passed = time.monotonic() - self._since
            speed = self._tokens * self.args.world_size / max(passed, 1e-9)
            logs["tokens_per_second"] = round(speed, 1)
            self._tokens = 0
        super().log(logs, *given)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, *given: Any, **named: Any) -> None:
        """Write the weights as the Trainer does, as readable as the umask says.

        The result of a run is written aside and moved to the output directory when it is whole, so
        that a killed run leaves no temporary file there.

        Raises:
            TrainingError: a disk that is full.
        """
        output = Path(self.args.output_dir)
        where = Path(output_dir) if output_dir is not None else output / UNFINISHED / "result"
        try:
            with weights_by_umask(where):
                super().save_model(str(where), *given, **named)  # type: ignore[misc]
            if output_dir is None:
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    _move_content(where, output)
        except (OSError, SafetensorError) as error:
            raise self._unwritable(error) from error

    def _get_output_dir(self, trial: Any) -> str:
        where = cast(str, super()._get_output_dir(trial))  # type: ignore[misc]
        return str(Path(where) / UNFINISHED) if self._saving else where

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, and put it in its place when it is whole.

        Raises:
            TrainingError: weights that are no numbers, or a disk that is full.
        """
        if not _all_finite(self.model):
            raise self._diverged()
        unfinished = Path(self.args.output_dir) / UNFINISHED
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except (OSError, RuntimeError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, TrainingError):  # of save_model above
                raise
            raise self._unwritable(error) from error
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        self._name_best(Path(self.args.output_dir))
        if self.args.should_save:
            self._put_in_place(unfinished / f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()

    def _name_best(self, output: Path) -> None:
        """Say where the best checkpoint will be, in every process: all will read it."""
        if step := self.state.best_global_step:
            best = output / f"checkpoint-{step}"
            if step == self.state.global_step or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _put_in_place(self, written: Path) -> None:
        output = Path(self.args.output_dir)
        try:
            self.state.save_to_json(str(written / STATE))
            for file in written.rglob("*"):
                if file.is_file():
                    _reach_the_disk(file)
            shutil.rmtree(output / written.name, ignore_errors=True)
            written.rename(output / written.name)
        except OSError as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise self._unwritable(error) from error
        shutil.rmtree(written.parent, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(output),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=False,
        )

    def _diverged(self) -> TrainingError:
        return TrainingError(
            "At step {step} the loss or a weight became infinite or no number, so training "
            "stopped; {last} is as it was. Lower --learning_rate, or train with --bf16 in place "
            "of --fp16.",
            step=self.state.global_step + 1,
            last=self._last(),
        )

    def _unwritable(self, error: Exception) -> TrainingError:
        return TrainingError(
            "The weights of step {step} could not be written ({reason}); {last} is as it was. "
            "Make room, or keep fewer with --save_total_limit, and give the same command again.",
            step=self.state.global_step,
            reason=str(error).splitlines()[0],
            last=self._last(),
        )

    def _last(self) -> str:
        steps = [
            int(path.name.rpartition("-")[2])
            for path in Path(self.args.output_dir).glob("checkpoint-*")
        ]
        if not steps:
            return translate("there is no checkpoint yet, and the model you began with")
        return f"checkpoint-{max(steps)}"


@contextmanager
def _resuming(checkpoint: str | None) -> Iterator[None]:
    """Say of what fails while a checkpoint is loaded that the checkpoint is the cause."""
    try:
        yield
    except BaichuanError:
        raise
    except Exception as error:  # what a file holds is handed on unchecked to torch and DeepSpeed
        if checkpoint is None:
            raise
        raise pickles.refusal(Path(checkpoint), error) from error


class FineTuner(Careful, Trainer):  # type: ignore[misc]  # untyped base
    """Trains on tokens and labels: stages pt and sft.

    The network computes the loss, in training and in evaluation, so that whole logits never exist.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, compute_metrics=_mean_of_labels, **named)
        self.label_smoother = None  # it wants whole logits; the network's loss smooths by itself

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *given: Any, **named: Any
    ) -> Any:
        """Compute the loss of a training batch as the Trainer does."""
        return super().compute_loss(model, self._with_options(inputs), *given, **named)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> tuple[None, Tensor, Tensor]:
        """Compute the sum of the losses and the number of labels of each row, for evaluation.

        The Trainer would average the means of batches, which depends on how rows are batched.
        """
        inputs = self._with_options(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = model(**inputs, reduction="none").loss
        return None, losses.sum(1), (inputs["labels"][:, 1:] != IGNORED).sum(1)

    def _with_options(self, inputs: dict[str, Any]) -> dict[str, Any]:
        smoothing = self.args.label_smoothing_factor
        return {**inputs, "use_cache": False, "skip_logits": True, "label_smoothing": smoothing}


def _mean_of_labels(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the mean loss over all labels, from the rows' sums and numbers of labels."""
    total = evaluated.predictions.sum(dtype="float64")
    return {"loss": float(total / evaluated.label_ids.sum())}


def _real_tokens(inputs: dict[str, Any]) -> int:
    """Count the tokens of a batch that are no padding."""
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else (mask != 0).sum())


def _all_finite(model: nn.Module) -> bool:
    """Say whether all weights that learn are numbers (of a spread model: this process's part)."""
    return all(bool(_local(p).isfinite().all()) for p in model.parameters() if p.requires_grad)


def _local(parameter: Tensor) -> Tensor:
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def _move_content(written: Path, output: Path) -> None:
    for file in written.iterdir():
        if file.is_file():
            _reach_the_disk(file)
        file.replace(output / file.name)
    shutil.rmtree(written.parent)


def _reach_the_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
