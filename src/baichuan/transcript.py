"""A conversation as a file: JSON and Markdown, checked when read, whole when written.

JSON is what `baichuan chat` saves and what the web page keeps; Markdown is for people, and comes
back as well. Knows no model and no door.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from baichuan.errors import PromptError
from baichuan.files import read_text
from baichuan.json_files import parse_json
from baichuan.language import translate
from baichuan.model.prompt import Message, Role
from baichuan.outputs import write_output

_MOST_BYTES = 1 << 26  # some thousand times the longest context
_HEADING = re.compile(r"## (System|User|Assistant)[ \t]*", re.IGNORECASE)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
#: A line of a message that would be read as a heading, or was one and has its backslash already.
_LIKE_HEADING = re.compile(rf"\\*{_HEADING.pattern}", re.IGNORECASE)


class Transcript(NamedTuple):
    """What a file holds: the system text or None, and the turns, oldest first."""

    system: str | None
    messages: list[Message]


def to_json(system: str | None, messages: Sequence[Message]) -> str:
    """Write a conversation as JSON."""
    content = {"system": system, "messages": messages}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def to_markdown(title: str, system: str | None, messages: Sequence[Message]) -> str:
    """Write a conversation as Markdown that `from_markdown` reads back: a heading before each turn.

    A line of a message that looks like such a heading gets a backslash, which Markdown hides. Empty
    lines around a message are not kept, and every line break becomes a line feed.
    """
    turns = [(message["role"], message["content"]) for message in messages]
    if system:
        turns.insert(0, ("system", system))
    sections = [f"## {role.capitalize()}\n\n{_escaped(content)}" for role, content in turns]
    return "\n\n".join([f"# {' '.join(title.split())}", *sections]) + "\n"


def from_json(text: str) -> Transcript:
    """Read what `to_json` wrote.

    Raises:
        ValueError: what is wrong, in the user's language.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        if "nested" in str(error):
            raise ValueError(translate("it is nested too deeply")) from error
        raise ValueError(translate("it is not JSON")) from error
    return _checked(content)


def from_markdown(text: str) -> Transcript:
    """Read what `to_markdown` wrote; what stands before the first turn's heading is skipped.

    Raises:
        ValueError: what is wrong, in the user's language.
    """
    sections: list[tuple[str, list[str]]] = []
    for line in _LINE_BREAK.split(text):
        if heading := _HEADING.fullmatch(line):
            sections.append((heading[1].lower(), []))
        elif sections:
            sections[-1][1].append(line[1:] if _LIKE_HEADING.fullmatch(line) else line)
    if not sections:
        raise ValueError(translate("it has no heading '## User'"))
    turns = [{"role": role, "content": "\n".join(lines).strip("\n")} for role, lines in sections]
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
    return _checked({"system": system, "messages": turns})


def read(path: Path, advice: str) -> Transcript:
    """Read a conversation's JSON file.

    Args:
        path: the file.
        advice: what becomes of it all, in the user's language; ends an error's sentence.

    Raises:
        PromptError: the file cannot be read or holds no conversation.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(translate("it is no regular file"))
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(translate("it has {size:,} bytes", size=size))
        return from_json(read_text(path))
    except OSError as error:
        raise PromptError(
            "{path} cannot be read ({reason}); {advice}.",
            path=path,
            reason=error.strerror,
            advice=advice,
        ) from error
    except ValueError as error:
        raise PromptError(
            "{path} is no saved conversation ({reason}); {advice}.",
            path=path,
            reason=error,
            advice=advice,
        ) from error


def write(path: Path, text: str, *, private: bool = False) -> None:
    """Write a text, whole or not at all.

    Args:
        path: of the file.
        text: all of it.
        private: let nobody but the owner read a new file.

    Raises:
        PromptError: the file cannot be written; nothing is left.
    """
    write_output(path, text.encode(), PromptError, private=private)


def _escaped(content: str) -> str:
    lines = _LINE_BREAK.split(content.strip("\r\n"))
    return "\n".join("\\" + line if _LIKE_HEADING.fullmatch(line) else line for line in lines)


def _checked(content: object) -> Transcript:
    """Give system text and messages; a ValueError says what is wrong with them."""
    if not isinstance(content, dict) or not isinstance(content.get("messages"), list):
        raise ValueError(translate("it has no list of 'messages'"))
    system = content.get("system")
    if system is not None:
        _check_text("system", system)
    messages: list[Message] = []
    for number, message in enumerate(content["messages"]):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            unknown = translate(
                "messages[{number}] is not from 'user' or 'assistant'", number=number
            )
            raise ValueError(unknown)
        _check_text(f"messages[{number}].content", message.get("content"))
        messages.append({"role": cast(Role, message["role"]), "content": message["content"]})
    return Transcript(system, messages)


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(translate("{what} is no text", what=what))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(translate("{what} holds half a character", what=what)) from error
