"""From what is typed to a `Recipe`: flags, YAML files, and the names that flags had in 2023.

transformers' own parser reads the flags, so that each of its `TrainingArguments` is one too. Knows
no data and no model.
"""

from __future__ import annotations

import difflib
import json
import re
from argparse import Action, ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from baichuan.errors import UsageError
from baichuan.language import phrase, translate
from baichuan.train import deepspeed
from baichuan.train.checks import check
from baichuan.train.recipe import (
    OWN,
    DataArguments,
    MethodArguments,
    ModelArguments,
    Recipe,
    TaskArguments,
)
from baichuan.train.recipe_file import read_recipe

__all__ = ["Recipe", "parse"]

#: Flags of LLaMA-Efficient-Tuning, LLaMA-Factory and transformers 4 that have another name here.
_RENAMED = {
    "dev_ratio": "val_size",
    "evaluation_strategy": "eval_strategy",
    "prompt_template": "template",
    "checkpoint_dir": "adapter_name_or_path",
    "quantization_bit": "bits",
    "torch_dtype": "dtype",
    "num_layer_trainable": "freeze_trainable_layers",
    "name_module_trainable": "freeze_trainable_modules",
    "num_hidden_layers_trainable": "freeze_trainable_layers",
    "dpo_beta": "pref_beta",
    "dpo_loss": "pref_loss",
    "dpo_ftx": "pref_ftx",
    "sft_packing": "packing",
    "neat_packing": "packing",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "group_by_length": "train_sampling_strategy",
}
#: Flags that have nothing left to say, whatever their value.
_NEEDLESS = {
    "trust_remote_code",
    "use_fast_tokenizer",
    "padding_side",
    "flash_attn",
    "save_safetensors",
    "double_quantization",
    "quantization_type",
    "quantization_method",
    "use_auth_token",
    "mix_strategy",
    "use_cache",
    "remove_unused_columns",
    "length_column_name",
    "logging_nan_inf_filter",
    "prediction_loss_only",
    "ddp_broadcast_buffers",
    "local_rank",  # of the launchers; torch reads it from the environment
}
#: The two lengths of 2023, which `cutoff_len` bounds together, with what they were by default.
_LENGTHS = {"max_source_length": 512, "max_target_length": 512}
#: The field's word for it; some versions of transformers warn of it, the others know no other.
_NEW_WORD = "activation_checkpointing"
_OLD_WORD = "gradient_checkpointing"
_SUFFIXES = (".yaml", ".yml", ".json")

#: What a value must be, in the user's words.
_KINDS: dict[Any, str] = {
    int: phrase("a whole number"),
    float: phrase("a number"),
    string_to_bool: phrase("true or false"),
    None: phrase("a value that the flag can take"),
}

_Words = list[str]


def parse(argv: Sequence[str]) -> Recipe:
    """Read a command line without the command's name.

    Args:
        argv: flags; or a recipe file (.yaml, .yml, .json) and flags, or `name=value`, that win over
            it. Blank arguments, as a backslash before a space makes them, say nothing.

    Raises:
        UsageError: a flag that there is not (names the nearest), or a value that is not allowed.
    """
    words = _without_blanks(argv)
    if words and words[0].startswith("--local_rank="):  # the deepspeed launcher's, before a recipe
        del words[0]
    if words and words[0].endswith(_SUFFIXES):
        words = [*_from_file(Path(words[0])), *map(_as_flag, words[1:])]
    words, notices = _todays(words)
    words = _with_deepspeed(words)
    parser = _Parser(*OWN, TrainingArguments)
    _refuse_unknown(words, parser)
    try:
        *own, training, rest = parser.parse_args_into_dataclasses(
            _with_defaults(words), return_remaining_strings=True, look_for_args_file=False
        )
    except UsageError:
        raise
    except (ValueError, ImportError, OSError, TypeError, NotImplementedError) as error:
        raise UsageError(
            "These flags do not go together: {reason}", reason=str(error).splitlines()[0]
        ) from error
    if rest:
        raise UsageError(
            "{word!r} is no flag and belongs to none; flags begin with --.", word=rest[0]
        )
    recipe = Recipe(*_typed(own), training=training, notices=tuple(notices))
    check(recipe)
    return recipe


def _typed(own: list[Any]) -> tuple[ModelArguments, DataArguments, MethodArguments, TaskArguments]:
    return cast("tuple[ModelArguments, DataArguments, MethodArguments, TaskArguments]", tuple(own))


class _Parser(HfArgumentParser):  # type: ignore[misc]  # untyped base
    """Raises what argparse would print before it exits."""

    def __init__(self, *kinds: Any) -> None:
        super().__init__(kinds, allow_abbrev=False, add_help=False)
        for action in self._actions:
            if action.type is string_to_bool:  # bare, also where nothing is the default
                action.nargs, action.const = "?", True

    def _get_value(self, action: Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except ArgumentError as error:
            kind = _KINDS.get(action.type, _KINDS[None])
            raise UsageError(
                "{name} is {given!r}; it must be {kind}.",
                name=action.dest,
                given=arg_string,
                kind=translate(kind),
            ) from error

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise UsageError(
                "{name} is {given!r}; allowed is one of {allowed}.",
                name=action.dest,
                given=value,
                allowed=", ".join(map(str, action.choices)),
            )

    def error(self, message: str) -> NoReturn:
        if bare := re.match(r"argument --(\w+).*: expected", message):
            raise UsageError("--{name} needs a value behind it.", name=bare[1])
        raise UsageError("{message}. `baichuan train --help` lists the flags.", message=message)


def _without_blanks(argv: Sequence[str]) -> _Words:
    """Drop blank arguments; refuse a command that the shell has cut off at one.

    `\\ ` at the end of a line is a blank argument, and the command ends there: what stood on the
    lines after it never arrives.
    """
    if argv and not argv[-1].strip():
        raise UsageError(
            "The command was cut off behind {last!r}: that line ends in a backslash and a space, "
            "where the shell wants a backslash alone. Delete the space, or run `baichuan train -` "
            "and paste the command there.",
            last=" ".join(word for word in argv[-3:-1]),
        )
    return [word for word in argv if word.strip()]


def _from_file(path: Path) -> Iterator[str]:
    """Give the entries of a recipe file as flags.

    Raises:
        UsageError: the file is missing, or is no mapping of names to values.
    """
    entries = read_recipe(path)
    for name, value in entries.items():
        if value is None:
            continue
        yield f"--{name}"
        if isinstance(value, list):
            yield from map(str, value)
        elif (name, value) != ("fsdp", True):  # a word behind this one would be an option of 2023
            yield json.dumps(value) if isinstance(value, dict) else str(value)


def _as_flag(word: str) -> str:
    """Take `name=value` behind a recipe for `--name=value`."""
    name, equals, _ = word.partition("=")
    return f"--{word}" if equals and name.isidentifier() else word


def _todays(words: _Words) -> tuple[_Words, list[str]]:
    """Replace the names that flags had; say what was done."""
    kept: _Words = []
    notices: list[str] = []
    lengths: dict[str, int] = {}
    for written, values in _grouped(words):
        name = _checkpointing(written)
        if name in _RENAMED:
            notices.append(
                translate("--{old} is called --{new} now.", old=name, new=_RENAMED[name])
            )
            if name == "group_by_length":  # its values have words now
                values = [name if values in ([], ["true"], ["True"]) else "random"]
            kept += [f"--{_RENAMED[name]}", *values]
        elif name in _LENGTHS:
            lengths[name] = _number(name, values)
        elif name not in _NEEDLESS:
            kept += [f"--{name}" if name else "", *values] if name else values
        elif name != "local_rank":
            notices.append(translate("--{name} is not needed here; it has no effect.", name=name))
    if lengths:
        total = sum({**_LENGTHS, **lengths}.values())
        kept += ["--cutoff_len", str(total)]
        notices.append(
            translate(
                "--max_source_length and --max_target_length are one limit now: --cutoff_len "
                "{total}.",
                total=total,
            )
        )
    return kept, notices


def _with_deepspeed(words: _Words) -> _Words:
    """Put in place of a DeepSpeed file what is in it, completed by the flags."""
    kept: _Words = []
    for name, values in _grouped(words):
        if name == "deepspeed" and len(values) == 1:
            values = [json.dumps(deepspeed.complete(deepspeed.read(values[0])))]
        kept += [f"--{name}", *values] if name else values
    return kept


def _checkpointing(name: str) -> str:
    """Give gradient checkpointing the name that this version of transformers wants."""
    if not hasattr(TrainingArguments, _NEW_WORD):
        return name
    return name.replace(_OLD_WORD, _NEW_WORD) if name.startswith(_OLD_WORD) else name


def _number(name: str, values: _Words) -> int:
    if len(values) != 1 or not values[0].isdecimal():
        raise UsageError(
            "{name} is {given}; it must be a whole number.", name=name, given=" ".join(values)
        )
    return int(values[0])


def _grouped(words: _Words) -> Iterator[tuple[str, _Words]]:
    """Give each flag's name, without dashes and with underscores, and the words behind it.

    What stands before the first flag has the name "".
    """
    name, values = "", _Words()
    for word in words:
        if not _is_flag(word):
            values.append(word)
            continue
        if name or values:
            yield name, values
        written, equals, value = word.partition("=")
        name = written.lstrip("-").replace("-", "_")
        values = [value] if equals else []
    if name or values:
        yield name, values


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _refuse_unknown(words: _Words, parser: _Parser) -> None:
    """Name the nearest flag to one that there is not."""
    known = {
        option.lstrip("-").replace("-", "_")
        for action in parser._actions
        for option in action.option_strings
    }
    for name, _ in _grouped(words):
        if name and name not in known:
            near = difflib.get_close_matches(name, sorted(known | _RENAMED.keys()), n=1, cutoff=0.5)
            if near:
                raise UsageError(
                    "There is no flag --{name}. Is --{near} meant?", name=name, near=near[0]
                )
            raise UsageError(
                "There is no flag --{name}. `baichuan train --help` lists the flags.", name=name
            )


def _with_defaults(words: _Words) -> _Words:
    """Put before the given flags what is different here from transformers' defaults."""
    defaults: _Words = ["--report_to", "none"]
    given = dict(_grouped(words))
    if not torch.accelerator.is_available():
        defaults += ["--use_cpu", "true"]  # bf16 is refused without it
    if not given.keys() & {"do_train", "do_eval", "do_predict"}:
        defaults += ["--do_train"]
    return [*defaults, *_evaluating(given), *words]


def _evaluating(given: Mapping[str, _Words]) -> _Words:
    """Return when to evaluate where there are rows for it and --eval_strategy is not given.

    At --eval_steps, with each checkpoint of which the best shall be loaded, or after each epoch.
    """
    kept = given.get("val_size", ["0"])
    if "eval_strategy" in given or not (given.get("eval_dataset") or kept[:1] not in ([], ["0"])):
        return []
    if "eval_steps" in given:
        return ["--eval_strategy", "steps"]
    saving = given.get("save_strategy", ["steps"])
    if "load_best_model_at_end" in given and saving in (["steps"], ["epoch"]):
        return ["--eval_strategy", *saving, "--eval_steps", *given.get("save_steps", ["500"])]
    return ["--eval_strategy", "epoch"]
