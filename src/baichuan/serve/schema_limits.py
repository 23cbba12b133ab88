"""What a JSON schema of a request may be at most, checked before anything is computed from it.

The bounds are far above schemas that people write; what a schema within them costs is bounded where
it is compiled (`grammar_process.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from baichuan.errors import UsageError

#: Levels of objects and arrays: beyond, recursive code fails, such as pickling and copying.
_MOST_LEVELS = 64
#: By what is counted: values of any kind; characters of patterns; those of constants, enumerations
#: and required names; references.
_MOST = {"values": 20_000, "pattern": 20_000, "const": 100_000, "$ref": 2_000}
#: Characters of one text that an answer may have to spell out: a name, a constant. The mask of each
#: token looks at all that is left of it.
_MOST_OF_A_TEXT = 4_000


def check_schema(schema: dict[str, Any]) -> None:
    """Check the size of a schema, in time proportional to it.

    Raises:
        UsageError: it is larger than any that is compiled; names what there is too much of.
    """
    counts = dict.fromkeys(_MOST, 0)
    level: list[tuple[str, Any]] = [("", schema)]
    for _ in range(_MOST_LEVELS):
        counts["values"] += len(level)
        for kind, value in level:
            _check_texts(kind, value)
            if kind == "$ref":
                counts[kind] += 1
            elif kind in counts and not isinstance(value, dict | list):
                counts[kind] += len(str(value))
        for name, most in _MOST.items():
            if counts[name] > most:
                raise _too_much(name, most)
        level = [inner for outer in level for inner in _inside(*outer)]
        if not level:
            return
    raise UsageError(
        "The JSON schema is nested deeper than {most} levels; give one that is simpler.",
        most=_MOST_LEVELS,
    )


def _check_texts(kind: str, value: Any) -> None:
    for text in value if isinstance(value, dict) else (value,) if kind == "const" else ():
        if isinstance(text, str) and len(text) > _MOST_OF_A_TEXT:
            raise UsageError(
                "The JSON schema has a text of {count:,} characters, {text!r}; allowed are "
                "{most:,}.",
                count=len(text),
                text=text[:40],
                most=_MOST_OF_A_TEXT,
            )


def _inside(kind: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values within one, and what each of them counts as."""
    if isinstance(value, list):
        yield from ((kind, inner) for inner in value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if kind in ("const", "patternProperties"):  # names are part of it
                yield "pattern" if kind == "patternProperties" else kind, name
            yield _kind(name, kind), inner


def _kind(name: str, of: str) -> str:
    if of == "const":
        return of
    if name in ("const", "enum", "required"):
        return "const"
    return name if name in ("pattern", "patternProperties", "$ref") else ""


def _too_much(name: str, most: int) -> UsageError:
    if name == "values":
        return UsageError(
            "The JSON schema has more than {most:,} values; give one that is simpler.", most=most
        )
    if name == "$ref":
        return UsageError(
            "The JSON schema has more than {most:,} references ($ref); give one that is simpler.",
            most=most,
        )
    return UsageError(
        "The JSON schema has more than {most:,} characters in {name}; give one that is simpler.",
        most=most,
        name="pattern" if name == "pattern" else "const and enum",
    )
