"""`baichuan train`: reads what is typed, then shows rows, plans memory, or trains.

torchrun, `accelerate launch` and deepspeed start it as a module: `-m baichuan.cli.train`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from baichuan.cli.pasted import read_command, start
from baichuan.errors import BaichuanError, DownloadError, UsageError
from baichuan.files import read_text
from baichuan.language import phrase, translate

if TYPE_CHECKING:
    from baichuan.model.tokenizer import BaichuanTokenizer
    from baichuan.train.recipe import ModelArguments, Recipe

_HELP = ("-h", "--help")
_USAGE = phrase(
    "Usage: baichuan train [RECIPE.yaml] [MODEL] [FLAGS]\n"
    "       baichuan train -               and paste a command, also the original README's\n\n"
    "Fine-tune a model (docs/finetuning.md). A recipe holds the same names as the flags; flags win."
)
_TITLES = (phrase("Model"), phrase("Data"), phrase("Method"), phrase("Instead of training"))
_OTHERS = phrase(
    "All flags of transformers' TrainingArguments can be given as well: --output_dir, "
    "--learning_rate, --num_train_epochs, --per_device_train_batch_size, "
    "--gradient_accumulation_steps, --lr_scheduler_type, --warmup_steps, --logging_steps, "
    "--save_steps, --eval_strategy, --eval_steps, --load_best_model_at_end, --bf16, --fp16, "
    "--gradient_checkpointing, --seed, --report_to, --deepspeed FILE, --fsdp, and more."
)


def run_train(arguments: Sequence[str]) -> None:
    """Do what the arguments say.

    Args:
        arguments: flags; a recipe file and flags; or `-` or a .sh file for a command as text.

    Raises:
        BaichuanError: whatever is wrong with the arguments, the data or the model.
    """
    if not arguments or any(word in _HELP for word in arguments):
        _print_help()
        return
    if arguments[0] == "-" or arguments[0].endswith(".sh"):
        command = read_command(_text(arguments[0]))
        os.environ.update(command.environment)
        given = [*command.arguments, *arguments[1:]]
        if command.launcher:
            start(command.launcher, given)
        arguments = given
    with Console(stderr=True).status(translate("starting")):
        parse = _imported()
    recipe = parse(_with_model_flag(arguments))
    if recipe.task.preview:
        _preview(recipe)
    elif recipe.task.plan:
        from baichuan.cli.plan import print_plan
        from baichuan.train.plan import plan

        print_plan(plan(recipe))
    else:
        from baichuan.train.run import run

        run(recipe)


def _with_model_flag(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the model behind its flag, however it was given."""
    given = [
        re.sub(r"^(-m|--model)(?==|$)", "--model_name_or_path", argument) for argument in arguments
    ]
    recipes = sum(1 for _ in takewhile(lambda a: a.endswith((".yaml", ".yml", ".json")), given))
    first = given[recipes] if given[recipes:] else ""
    if first.strip() and not first.startswith("-") and "=" not in first:
        given.insert(recipes, "--model_name_or_path")
    return given


def _imported() -> Callable[[Sequence[str]], Recipe]:
    """Import what takes seconds."""
    import torch

    if not torch.accelerator.is_available():
        # Else DeepSpeed, where it is installed, warns of that also in runs that do not use it.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import datasets

        from baichuan.train.arguments import parse
    except ModuleNotFoundError as error:
        raise UsageError(
            "{module} is missing; `pip install 'baichuan-lm[train]'` brings what training needs.",
            module=error.name,
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return parse


def _text(name: str) -> str:
    """Read a command from a file or from what is pasted."""
    if name != "-":
        try:
            return read_text(Path(name))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("{path} cannot be read: {reason}.", path=name, reason=error) from error
    if sys.stdin.isatty():
        note = translate("Paste the command; then Enter and Ctrl+D.")
        Console(stderr=True).print(note, style="dim", markup=False)
    return sys.stdin.read().removeprefix("\ufeff")


def _preview(recipe: Recipe) -> None:
    """Print rows; what is said about them goes to stderr."""
    from baichuan.train.data import load
    from baichuan.train.preview import legend, rendered

    notes, out = Console(stderr=True), Console(highlight=False, soft_wrap=True)
    tokenizer = _tokenizer(recipe.model)
    splits = load(recipe, tokenizer)
    for notice in (*recipe.notices, *splits.notices):
        notes.print(notice, style="dim", markup=False)
    colours = out.color_system is not None and not out.no_color
    out.print(legend(colours=colours))
    for row in splits.train.select(range(min(recipe.task.preview or 0, len(splits.train)))):
        out.print()
        for text in rendered(row, tokenizer, colours=colours):
            out.print(text)


def _tokenizer(model: ModelArguments) -> BaichuanTokenizer:
    """Load the tokenizer alone; of a model on the hub, no weights are fetched."""
    from baichuan.hub import DEMO
    from baichuan.model.tokenizer import BaichuanTokenizer

    name = model.model_name_or_path or DEMO
    try:
        tokenizer: BaichuanTokenizer = BaichuanTokenizer.from_pretrained(
            name, revision=model.model_revision, cache_dir=model.cache_dir
        )
        return tokenizer
    except OSError as error:
        if isinstance(error, BaichuanError):
            raise
        raise DownloadError(
            "{name} is no directory of a checkpoint, and its tokenizer could not be fetched from "
            "the hub: {why}",
            name=name,
            why=(str(error) or type(error).__name__).splitlines()[0],
        ) from error


def flag_names() -> list[str]:
    """Return the flags that the help names, for the shell's completion."""
    from baichuan.train.recipe import OWN

    own = [f"--{flag.name}" for kind in OWN for flag in fields(kind)]
    return own + re.findall(r"--\w+", _OTHERS)


def _print_help() -> None:
    """Print this package's flags; transformers' are too many, the README's are named."""
    from baichuan.train.recipe import OWN

    print(translate(_USAGE))
    for title, kind in zip(_TITLES, OWN, strict=True):
        print(f"\n{translate(title)}")
        defaults = kind()
        for flag in fields(kind):
            default = getattr(defaults, flag.name)
            listed = ",".join(default) if isinstance(default, list) else str(default)
            shown = "" if default in (None, False, []) else f" [{listed}]"
            print(f"  --{flag.name:26} {translate(flag.metadata['help'])}{shown}")
    print(f"\n{translate(_OTHERS)}")


def main() -> None:
    """Run with the command line of this process."""
    run_train(sys.argv[1:])


if __name__ == "__main__":
    from baichuan.cli.main import run as run_command

    run_command(main)
