"""One fine-tuning from its recipe to the files that come out. Knows how the parts go together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from baichuan.errors import UsageError
from baichuan.hub import DEMO, local_directory
from baichuan.kernels.native import bfloat16_is_slow
from baichuan.language import translate
from baichuan.model.pretrained import read_config
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.train import data, deepspeed, lock, model, pickles, resume
from baichuan.train.curve import require_picture, write_curve
from baichuan.train.process import prepare_process
from baichuan.train.progress import Progress
from baichuan.train.recipe import Recipe
from baichuan.train.trainer import FineTuner

#: Says a sentence to the user; of several processes, only the first one does.
Say = Callable[[str], None]


def run(recipe: Recipe) -> None:
    """Train, and write the result to the output directory.

    Raises:
        BaichuanError: what was asked for cannot be, or training cannot go on.
        KeyboardInterrupt: Ctrl+C, once it is said what is saved.
    """
    prepare_process()
    recipe = for_this_machine(recipe)
    say = _sayer(recipe.training)
    try:
        with pickles.restricted(deepspeed=bool(recipe.training.deepspeed)), _alone(recipe, say):
            _train(recipe, say)
    except KeyboardInterrupt:
        # On a terminal, ^C stands behind what was printed last.
        say(("\n" if sys.stderr.isatty() else "") + _stopped(recipe))
        raise


def _alone(recipe: Recipe, say: Say) -> AbstractContextManager[None]:
    """Return what keeps other trainings out of the output directory, in the first process."""
    training = recipe.training
    if not training.do_train or training.process_index != 0:
        return nullcontext()
    return lock.alone(Path(training.output_dir), say)


def _train(recipe: Recipe, say: Say) -> None:
    """Do what `run` does, from the first word to the last."""
    training = recipe.training
    for notice in recipe.notices:
        say(notice)
    _check_start(recipe)
    checkpoint = resume.starting_point(recipe)
    training.distributed_state.wait_for_everyone()  # before anything is written there
    if checkpoint is not None:
        say(translate("going on from {checkpoint}", checkpoint=checkpoint))
    directory = _directory(recipe)
    model.check(recipe, directory)
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    tokenizer.pad_within(read_config(directory).vocab_size)
    with training.main_process_first():
        splits = data.load(recipe, tokenizer)
    for notice in splits.notices:
        say(notice)
    _check_rows(training, len(splits.train))
    given = _inputs(recipe, directory, splits, checkpoint, say)
    set_seed(training.seed)  # an adapter begins with random numbers
    trainer = make_trainer(recipe, directory, tokenizer, splits)
    say(_size(trainer))
    if training.do_train:
        if training.should_save:
            with lock.writing(Path(training.output_dir)):
                resume.begin(recipe, checkpoint, given)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        _finish(recipe, trainer, say)
    _evaluate(trainer, say)


def _evaluate(trainer: Trainer, say: Say) -> None:
    """Evaluate where the training did not; say where nothing does."""
    training, rows = trainer.args, trainer.eval_dataset
    if training.do_eval and (training.eval_strategy == "no" or not training.do_train):
        for name, value in trainer.evaluate().items():
            say(f"{name}: {value:.6g}")
    elif training.eval_strategy == "no" and rows is not None:
        unused = translate(
            "{rows} rows for evaluation were not used: --eval_strategy no.", rows=len(rows)
        )
        say(unused)


def _check_start(recipe: Recipe) -> None:
    """Check what only the start of a run shows: its processes, DeepSpeed's file, matplotlib."""
    if recipe.training.fsdp and "RANK" not in os.environ:
        raise UsageError(
            "--fsdp spreads weights among processes; start them by "
            "`torchrun --nproc_per_node 2 -m baichuan.cli.train` and the same flags."
        )
    deepspeed.check_agreement(recipe.training)
    if recipe.method.plot_loss:
        require_picture()


def _inputs(
    recipe: Recipe, directory: Path, splits: data.Splits, checkpoint: Path | None, say: Say
) -> dict[str, str]:
    """Return the digests of what is trained from; of several processes, the first computes them."""
    if not (recipe.training.do_train and recipe.training.should_save):
        return {}
    given = resume.inputs(recipe, directory, splits)
    if checkpoint is not None:
        for notice in resume.check_inputs(recipe, checkpoint, given):
            say(notice)
    return given


def _check_rows(training: TrainingArguments, rows: int) -> None:
    """Refuse to train no step at all."""
    batch = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and rows < batch:
        raise UsageError(
            "--dataloader_drop_last leaves out batches of fewer than {batch} rows, and there are "
            "{rows} rows: nothing would be trained. Leave it out.",
            batch=batch,
            rows=rows,
        )


def for_this_machine(recipe: Recipe) -> Recipe:
    """Replace float16 by bfloat16 where there is no GPU: CPUs do not train in it.

    Where the processor does not compute in bfloat16 either, that is said.
    """
    training, notices = recipe.training, recipe.notices
    if torch.accelerator.is_available() or not (training.fp16 or training.bf16):
        return recipe
    if training.fp16:
        training = replace(training, fp16=False, bf16=True)
        notices = (*notices, translate("There is no GPU here, so --fp16 is read as --bf16."))
    if bfloat16_is_slow():
        notice = translate(
            "This processor is slow in bfloat16: without --bf16 and --fp16, in float32, training "
            "takes more memory and a fraction of the time."
        )
        notices = (*notices, notice)
    return replace(recipe, training=training, notices=notices)


def _stopped(recipe: Recipe) -> str:
    """Say what is saved and how to go on."""
    output = Path(recipe.training.output_dir)
    last, weights = resume.last_checkpoint(output), resume.last_weights(output)
    if last is None and weights is not None:
        return translate(
            "Stopped; {checkpoint} has the weights alone (--save_only_model), so the same command "
            "cannot go on from it.",
            checkpoint=weights,
        )
    if last is None:
        return translate(
            "Stopped before a checkpoint was saved (--save_steps says how often); the same command "
            "begins anew."
        )
    if recipe.method.overwrite_output_dir:
        return translate(
            "Stopped; {checkpoint} is whole. To go on from it, give the same command without "
            "--overwrite_output_dir.",
            checkpoint=last,
        )
    return translate(
        "Stopped; {checkpoint} is whole, and the same command goes on from it.", checkpoint=last
    )


def make_trainer(
    recipe: Recipe, directory: Path, tokenizer: BaichuanTokenizer, splits: data.Splits
) -> Trainer:
    """Put a checkpoint's network and the rows into the Trainer of the stage."""
    training = recipe.training
    if is_deepspeed_zero3_enabled():
        deepspeed.join_processes()
    network = model.prepare(recipe, directory)
    training.logging_nan_inf_filter = False  # such a loss is an error here
    training.remove_unused_columns = False
    training.ddp_broadcast_buffers = False  # they are constant, and quantized weights are buffers
    training.use_cache = True  # else the saved model would not use one either
    rows = {"train_dataset": splits.train, "eval_dataset": splits.evaluation}
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # what learns is used in every pass
    if recipe.method.stage == "dpo":
        from baichuan.train.preference import PreferenceTuner, preference_arguments

        trainer = PreferenceTuner(
            network,
            model.reference(recipe, directory),
            preference_arguments(training, recipe.method),
            processing_class=tokenizer,
            **rows,
        )
    else:
        trainer = FineTuner(
            network,
            training,
            data_collator=data.Collator(tokenizer),
            processing_class=tokenizer,
            **rows,
        )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    return trainer


def _directory(recipe: Recipe) -> Path:
    """Find the checkpoint to begin with; of several processes, the first fetches it."""
    asked = recipe.model
    with recipe.training.main_process_first():
        return local_directory(
            DEMO if asked.model_name_or_path is None else asked.model_name_or_path,
            revision=asked.model_revision,
            cache_dir=asked.cache_dir,
        )


def _finish(recipe: Recipe, trainer: Trainer, say: Say) -> None:
    """Write weights, tokenizer, state and curve, and record that the run has ended."""
    training = recipe.training
    output = Path(training.output_dir)
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    elif recipe.method.finetuning_type != "lora" and not trainer.is_deepspeed_enabled:
        trainer.model.to(model.compute_dtype(training))  # float32 was for small steps
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    with lock.writing(output):
        trainer.save_state()
        if recipe.method.plot_loss:
            write_curve(trainer.state.log_history, output, _name(recipe), recipe.method.stage)
        resume.end(recipe)
    say(translate("written: {directory}", directory=output))


def _name(recipe: Recipe) -> str:
    """Name a run for the title of its picture."""
    given = Path(recipe.model.model_name_or_path or DEMO).name
    bits = f", int{recipe.model.bits}" if recipe.model.bits else ""
    return f"{given}, {recipe.method.stage}, {recipe.method.finetuning_type}{bits}"


def _size(trainer: Trainer) -> str:
    parameters = trainer.model.parameters()
    # Under ZeRO-3 a parameter is empty between its uses, and knows its size.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
    return translate(
        "{trained:,} weights learn (of {all:,} that are not quantized)",
        trained=sum(size for size, learns in sizes if learns),
        all=sum(size for size, _ in sizes),
    )


def _sayer(training: TrainingArguments) -> Say:
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if training.process_index != 0:
        return lambda _: None
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda sentence: notes.print(sentence, style="dim", markup=False)
