"""What the settings in someone else's JSON file may hold: tables of names and kinds, and a check.

A table is an allow-list: names that are not in it are not read, so that a file cannot set what a
library behind this one happens to look for.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from baichuan.errors import BaichuanError
from baichuan.language import phrase, translate


@dataclass(frozen=True)
class Kind:
    """A set of JSON values.

    Attributes:
        holds: whether a value is one of them; raises nothing.
        allowed: names them, for an error; a template of the catalogue.
        facts: of the template; a kind among them is said in words.
    """

    holds: Callable[[Any], bool]
    allowed: str
    facts: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        facts = {n: str(fact) if isinstance(fact, Kind) else fact for n, fact in self.facts.items()}
        return translate(self.allowed, **facts)


BOOLEAN = Kind(lambda value: isinstance(value, bool), phrase("true or false"))
NOTHING = Kind(lambda value: not value, phrase("null or empty"))
OBJECT = Kind(lambda value: isinstance(value, dict), phrase("an object"))


def whole(least: int, most: int) -> Kind:
    """Return the kind of the integers from `least` to `most`."""
    return Kind(
        lambda value: type(value) is int and least <= value <= most,
        phrase("an integer from {least} to {most}"),
        {"least": least, "most": most},
    )


def number(least: float, most: float) -> Kind:
    """Return the kind of the numbers from `least` to `most`; never NaN nor infinity."""
    return Kind(
        lambda value: type(value) in (int, float) and least <= value <= most and value < math.inf,
        phrase("a number from {least} to {most}"),
        {"least": least, "most": most},
    )


def text(most: int, pattern: str = "", least: int = 0) -> Kind:
    """Return the kind of the texts of `least` to `most` characters that UTF-8 can encode.

    Args:
        most: characters.
        pattern: a regular expression for all of the text; it must take linear time.
        least: characters.
    """
    return Kind(
        lambda value: (
            isinstance(value, str)
            and least <= len(value) <= most
            and not re.search("[\x00\ud800-\udfff]", value)
            and (not pattern or re.fullmatch(pattern, value) is not None)
        ),
        phrase("a text of {least} to {most} characters"),
        {"least": least, "most": most},
    )


def one_of(*values: str) -> Kind:
    """Return the kind of these texts."""
    listed = ", ".join(map(repr, values))
    return Kind(
        lambda value: isinstance(value, str) and value in values,
        phrase("one of {values}"),
        {"values": listed},
    )


def list_of(kind: Kind, most: int) -> Kind:
    """Return the kind of the lists of at most `most` values of a kind."""
    return Kind(
        lambda value: (
            isinstance(value, list) and len(value) <= most and all(map(kind.holds, value))
        ),
        phrase("a list of at most {most}, each {kind}"),
        {"most": most, "kind": kind},
    )


def object_of(names: Kind, values: Kind, most: int) -> Kind:
    """Return the kind of the objects of at most `most` entries of these kinds."""
    return Kind(
        lambda value: (
            isinstance(value, dict)
            and len(value) <= most
            and all(map(names.holds, value))
            and all(map(values.holds, value.values()))
        ),
        phrase("an object of at most {most} entries, each {kind}"),
        {"most": most, "kind": values},
    )


def object_with(fields: Mapping[str, Kind], *needed: str) -> Kind:
    """Return the kind of the objects whose entries are all in a table, some of them needed."""
    return Kind(
        lambda value: (
            isinstance(value, dict)
            and value.keys() <= fields.keys()
            and all(name in value for name in needed)
            and all(fields[name].holds(inner) for name, inner in value.items())
        ),
        phrase("an object with {names}"),
        {"names": ", ".join(fields)},
    )


def either(one: Kind, other: Kind) -> Kind:
    """Return the kind of the values of two kinds."""
    return Kind(
        lambda value: one.holds(value) or other.holds(value),
        phrase("{one}, or {other}"),
        {"one": one, "other": other},
    )


def optional(kind: Kind) -> Kind:
    """Return the kind with null."""
    return Kind(
        lambda value: value is None or kind.holds(value), phrase("{kind}, or null"), {"kind": kind}
    )


def read_fields(
    content: Mapping[str, Any],
    table: Mapping[str, Kind],
    file: object,
    error: type[BaichuanError],
) -> dict[str, Any]:
    """Return the settings of a file that are in a table.

    Args:
        content: what the file holds.
        table: name to kind.
        file: its path or name, for the message.
        error: class of the errors.

    Raises:
        BaichuanError: `error`: a setting has a value of another kind; names file and setting.
    """
    read = {name: value for name, value in content.items() if name in table}
    for name, value in read.items():
        if not table[name].holds(value):
            raise error(
                phrase(
                    "{file} cannot be used: {name} is {given}; allowed is {allowed}. Correct it, "
                    "or fetch the file again."
                ),
                file=file,
                name=name,
                given=reprlib.repr(value),
                allowed=table[name],
            )
    return read
