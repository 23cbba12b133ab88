"""Reading adapter_config.json: an allow-list, checked before peft sees it.

peft builds its configuration of whatever the file has. Some settings import a module that the file
names (`megatron_core`), read another file (`corda_config`) or change the base weights (LoftQ,
PiSSA); target names may be regular expressions, and some of those take for ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from baichuan.errors import CheckpointError
from baichuan.json_fields import (
    BOOLEAN,
    Kind,
    either,
    list_of,
    number,
    object_of,
    one_of,
    optional,
    read_fields,
    text,
    whole,
)
from baichuan.json_files import read_object
from baichuan.language import phrase

_NAME = text(200, least=1)
_NAMES = list_of(_NAME, 10_000)
_PART = text(200, r"[\w.]*")
_LAYER, _TOKEN = whole(0, 1 << 20), whole(0, 1 << 24)
_RANK = whole(1, 1 << 14)
_ALPHA = number(-1e6, 1e6)
#: What makes a search exponential (repeated groups, references), or is more than needed.
_SLOW = re.compile(r"\)[*+?{]|\\\d|\(\?[^:]")
_REPEAT = re.compile(r"[*+{]|(?<!\()\?")
#: Characters of a module's name, about: what one repeat multiplies the ways to match by.
_WAYS = 45
_MOST_STEPS, _MOST_STEPS_OF_ALL = 1e6, 2e4
_MOST_PATTERNS = 500  # as many as the module re keeps compiled


def _steps(pattern: Any) -> float:
    """Return a bound for the steps of matching a module's name; infinity if it is no pattern."""
    if not _NAME.holds(pattern) or _SLOW.search(pattern):
        return math.inf
    try:
        re.compile(pattern)
    except (re.error, OverflowError):
        return math.inf
    alternatives = math.prod(part.count("|") + 1 for part in pattern.split(")"))
    return float(_WAYS ** len(_REPEAT.findall(pattern)) * alternatives)


_PATTERN = Kind(
    lambda value: _steps(value) <= _MOST_STEPS,
    phrase("a regular expression of few alternatives and repeats, and no repeated group"),
)


def _by_pattern(kind: Kind) -> Kind:
    """Return the kind of the objects from patterns of modules' names to values of a kind."""
    return Kind(
        lambda value: (
            object_of(_NAME, kind, _MOST_PATTERNS).holds(value)
            and sum(map(_steps, value)) <= _MOST_STEPS_OF_ALL
        ),
        phrase("an object of at most {most} simple patterns of modules, each {kind}"),
        {"most": _MOST_PATTERNS, "kind": kind},
    )


#: What is read. Whatever the weights say themselves, such as how they were initialized, is not.
_FIELDS = {
    "task_type": optional(one_of("CAUSAL_LM")),
    "base_model_name_or_path": optional(text(4096)),
    "revision": optional(text(200)),
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "lora_dropout": number(0, 0.999),
    "use_rslora": BOOLEAN,
    "use_dora": BOOLEAN,
    "bias": one_of("none", "all", "lora_only"),
    "lora_bias": BOOLEAN,
    "target_modules": optional(either(_NAMES, _PATTERN)),
    "exclude_modules": optional(either(_NAMES, _PATTERN)),
    "modules_to_save": optional(_NAMES),
    "layers_to_transform": optional(either(_LAYER, list_of(_LAYER, 10_000))),
    "layers_pattern": optional(either(list_of(_PART, 100), _PART)),
    "rank_pattern": _by_pattern(_RANK),
    "alpha_pattern": _by_pattern(_ALPHA),
    "trainable_token_indices": optional(
        either(list_of(_TOKEN, 1 << 18), object_of(_NAME, list_of(_TOKEN, 1 << 18), 10))
    ),
    "ensure_weight_tying": BOOLEAN,
}
#: How the weights began, or who wrote the file. Of the initializations, the others change the base.
_IGNORED = {"peft_type", "peft_version", "auto_mapping", "inference_mode", "eva_config"}
_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")


def read_lora_config(file: Path) -> LoraConfig:
    """Read an adapter_config.json.

    Raises:
        CheckpointError: it is not JSON, not of LoRA, has a value of the wrong kind, or a setting
            that this package does not know and that is not off.
    """
    content = read_object(file)
    kind = content.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            "{file} is of the peft_type {kind!r}; allowed is LORA. Train a LoRA adapter, or merge "
            "this one with the program that made it.",
            file=file,
            kind=kind,
        )
    initialization = content.pop("init_lora_weights", True)
    if not (type(initialization) in (bool, str) and initialization in _INITIALIZATIONS):
        raise CheckpointError(
            "{file} has init_lora_weights {given!r}, which changes the base weights as the adapter "
            "is loaded. Convert it to plain LoRA with peft (save_pretrained with "
            "path_initial_model_for_weight_conversion), or merge it with the program that made it.",
            file=file,
            given=initialization,
        )
    computed = {field.name: field.default for field in fields(LoraConfig)}
    _refuse_unknown(file, content, computed)
    settings = read_fields(content, _FIELDS, file, CheckpointError)
    try:
        return LoraConfig(**{name: settings[name] for name in settings.keys() & computed.keys()})
    except (ValueError, TypeError) as error:
        raise CheckpointError("{file} cannot be used: {reason}", file=file, reason=error) from error


def _refuse_unknown(file: Path, content: Mapping[str, Any], computed: Mapping[str, Any]) -> None:
    """Refuse settings that are neither read, nor empty, nor what peft has by default.

    A setting that is passed over might change what the adapter computes.

    Args:
        file: for the message.
        content: what it holds.
        computed: the settings of the installed peft, with their defaults.
    """
    for name, value in content.items():
        known = name in _IGNORED or (name in _FIELDS and name in computed)
        if value and not known and value != computed.get(name):
            raise CheckpointError(
                "{file} has {name} = {given!r}, which this package does not compute. Train the "
                "adapter without it, or merge it with the program that made it.",
                file=file,
                name=name,
                given=value,
            )
