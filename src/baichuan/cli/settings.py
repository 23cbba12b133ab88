"""What /set understands: names, and values typed by a person."""

from __future__ import annotations

import math
import shlex
from typing import Any

from baichuan.errors import UsageError

_WHOLE = ("top_k", "max_tokens", "seed")
_FRACTIONAL = ("temperature", "top_p", "min_p", "repetition_penalty")
#: Everything that /set can set.
NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_tokens",
    "seed",
    "stop",
)

#: torch's generators take 64 bits.
_LARGEST_SEED = 2**63 - 1


def parse_setting(name: str, value: str) -> Any:
    """Turn a typed value into what `SamplingParams` takes.

    Raises:
        UsageError: a name that there is not, or a value of the wrong kind.
    """
    check_name(name)
    if name in _WHOLE:
        return _whole(name, value)
    if name in _FRACTIONAL:
        return _fractional(name, value)
    return _strings(value)


def check_name(name: str) -> str:
    """Return the name of a setting.

    Raises:
        UsageError: there is no such setting.
    """
    if name not in NAMES:
        raise UsageError(
            "There is no setting {name!r}; there are {names}.", name=name, names=", ".join(NAMES)
        )
    return name


def _whole(name: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError as error:
        raise UsageError(
            "{name} is {given!r}; it must be a whole number, for example: /set {name} 40",
            name=name,
            given=value,
        ) from error
    if name == "seed" and not 0 <= number <= _LARGEST_SEED:
        raise UsageError(
            "seed is {given}; allowed is 0 to {largest}.", given=number, largest=_LARGEST_SEED
        )
    return number


def _fractional(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            "{name} is {given!r}; it must be a number, for example: /set {name} 0.85",
            name=name,
            given=value,
        )
    return number


def _strings(value: str) -> tuple[str, ...]:
    r"""Split as a shell would; `\n` and `\t` stand for a line break and a tab."""
    lexer = shlex.shlex(value, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise UsageError(
            "A quotation mark in {given!r} has no partner; try: /set stop END '\\n\\n'",
            given=value,
        ) from error
    return tuple(word.replace("\\n", "\n").replace("\\t", "\t") for word in words)
