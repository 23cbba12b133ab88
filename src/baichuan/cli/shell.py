"""Words of a shell script, without a shell: quotes, variables, comments and lines that go on.

What only a shell can do (pipes, redirections, substitutions) is refused by name. As words they
would become values of flags.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from baichuan.errors import UsageError

_VARIABLE = r"(?P<variable>\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*(?::?-[^{}$`]*)?\}))"
_OUTSIDE = re.compile(
    # The original README ends some lines in a backslash and a space.
    r"(?P<blank>[ \t\r]+|\\[ \t\r]*(?:\n|\Z)|(?<!\S)\#[^\n]*)"
    r"|(?P<end>[\n;])"
    r"|(?P<single>'[^']*')"
    r'|(?P<rest>"\$[@*]"|\$[@*])'
    r'|(?P<quote>")'
    rf"|{_VARIABLE}"
    r"|(?P<shell>(?:(?<!\S)\d+)?[<>|&()][^\s;]*|`|\$[^\s]*)"
    r"|(?P<home>(?<![^\s=])~(?=[/\s]|\Z))"
    r"|(?P<escaped>\\.)"
    r"|(?P<plain>[^'])",
    re.DOTALL,
)
_INSIDE = re.compile(
    r'(?P<quote>")'
    rf"|{_VARIABLE}"
    r"|(?P<shell>`|\$[({][^\s]*)"
    r"|(?P<blank>\\\n)"
    r'|(?P<escaped>\\[$`"\\])'
    r"|(?P<plain>.)",
    re.DOTALL,
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def read_script(text: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a script sets, and the words of its command.

    Raises:
        UsageError: there are several commands, a variable is not set, or a shell is needed.
    """
    reader = _Reader()
    reader.read(text.removeprefix("\ufeff"))
    return reader.variables, reader.command


class _Reader:
    """Reads a script from its beginning to its end."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        self.command: list[str] = []
        self._words: list[str] = []  # of this line
        self._word: str | None = None
        self._quoted = False

    def read(self, text: str) -> None:
        place = 0
        while place < len(text):
            found = (_INSIDE if self._quoted else _OUTSIDE).match(text, place)
            if found is None:
                break
            self._take(str(found.lastgroup), found[0])
            place = found.end()
        if place < len(text) or self._quoted:
            raise UsageError("The command cannot be read: {reason}.", reason="No closing quotation")
        self._end_line("\n")

    def _take(self, kind: str, token: str) -> None:
        if kind == "shell":
            raise UsageError(
                "{token!r} needs a shell, and none reads the command here. Remove it from the "
                "text; what is printed can be redirected behind `baichuan train FILE.sh`.",
                token=token,
            )
        if kind == "end":
            self._end_line(token)
        elif kind == "blank":
            if not self._quoted:
                self._end_word()
        elif kind == "rest":
            pass  # what stands behind the script's name is added to its command
        elif kind == "quote":
            self._quoted = not self._quoted
            self._add("")
        elif kind == "variable":
            self._add_value(self._value(token.strip("${}")))
        else:
            taken = {"single": token[1:-1], "escaped": token[1:], "home": str(Path.home())}
            self._add(taken.get(kind, token))

    def _add(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _add_value(self, value: str) -> None:
        """Add a variable's value: outside of quotes, its blanks part words."""
        if self._quoted:
            self._add(value)
            return
        for number, field in enumerate(re.split(r"\s+", value) if value else ()):
            if number:
                self._end_word()
            if field:
                self._add(field)

    def _value(self, name: str) -> str:
        parts = re.fullmatch(r"(\w+)(:?-)?(.*)", name, re.DOTALL)
        assert parts is not None
        name, default, instead = parts.groups()
        value = self.variables.get(name, os.environ.get(name))
        if default and (value is None or (default == ":-" and not value)):
            return instead
        if value is None:
            raise UsageError(
                "The variable ${name} is not set. Set it in the text, by a line such as "
                "{name}=value before the command, or in the environment.",
                name=name,
            )
        return value

    def _end_word(self) -> None:
        if self._word is not None:
            self._words.append(self._word)
            self._word = None

    def _end_line(self, end: str) -> None:
        self._end_word()
        words, self._words = self._words, []
        if words[:1] == ["export"] or words[:1] == ["set"]:
            words = [word for word in words[1:] if words[0] == "export" and "=" in word]
        while words and _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            self.variables[name] = value
        if self.command and words and not words[0].startswith("-"):
            raise UsageError(
                "The text holds two commands, {first!r} and {second!r}; only a training can be "
                "started, and only one.",
                first=" ".join(self.command[:4]),
                second=" ".join(words[:4]),
            )
        self.command += words  # flags on a line of their own belong to the command before
