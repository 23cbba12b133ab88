"""Saved conversations: a JSON file each, as `baichuan chat` saves them, found by words in them.

Knows no page and no model. What else lies in the directory is left alone.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import platformdirs

from baichuan import transcript
from baichuan.errors import BaichuanError, PromptError
from baichuan.files import remove_stale
from baichuan.language import translate
from baichuan.outputs import unwritable
from baichuan.transcript import Transcript

#: 64 random bits: nobody guesses the address of someone else's conversation.
_NAME = re.compile(r"[0-9a-f]{16}")
_TITLE_LENGTH = 60
#: Bytes of a file that is read; more cannot be imported either.
_MOST_BYTES = 20 << 20

EMPTY = Transcript(None, [])


def data_directory() -> Path:
    """Where this user's conversations are, by the system's custom (`$XDG_DATA_HOME`, ...)."""
    return Path(platformdirs.user_data_dir("baichuan", appauthor=False)) / "conversations"


def new_name() -> str:
    """Give a name for a conversation that is not saved yet."""
    return secrets.token_hex(8)


def is_name(text: str) -> bool:
    """Say whether a text, perhaps from an address bar, can be a conversation's name."""
    return _NAME.fullmatch(text) is not None


def title(conversation: Transcript) -> str:
    """Give the beginning of the first thing that was said, as one line."""
    for message in conversation.messages:
        if line := " ".join(message["content"][: 100 * _TITLE_LENGTH].split()):
            return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1] + "…"
    return translate("New conversation")


@dataclass(frozen=True)
class Entry:
    """A saved conversation in a list."""

    name: str
    title: str


class Conversations:
    """The conversations in one directory; for any number of threads.

    Args:
        directory: made when the first conversation is saved; like the files in it, it is for this
            user alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # By name: the file's time and size when it was read, and what was in it.
        self._read: dict[str, tuple[tuple[int, int], Transcript | PromptError]] = {}

    def get(self, name: str) -> Transcript:
        """Give a conversation; an empty one where none is saved under the name.

        Raises:
            PromptError: the file is there and cannot be read.
        """
        path = self._path(name)
        return self._current(path) if path.exists() else EMPTY

    def put(self, name: str, conversation: Transcript) -> None:
        """Save a conversation; one without messages is deleted.

        Raises:
            PromptError: the disk does not take it.
        """
        path = self._path(name)
        self._read.pop(name, None)
        try:
            if not conversation.messages:
                remove_stale(path)
                path.unlink(missing_ok=True)
                return
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error, PromptError) from error
        transcript.write(path, transcript.to_json(*conversation), private=True)

    def find(self, words: str = "") -> list[Entry]:
        """List the conversations that hold all of the words, in any case; the newest first."""
        wanted = words.casefold().split()
        paths = [path for path in self.directory.glob("*.json") if is_name(path.stem)]
        entries = []
        for path in sorted(paths, key=_changed, reverse=True):
            try:
                conversation = self._current(path)
            except BaichuanError:  # not ours, or deleted a moment ago
                continue
            said = "\n".join(_texts(conversation)).casefold() if wanted else ""
            if all(word in said for word in wanted):
                entries.append(Entry(path.stem, title(conversation)))
        return entries

    def _path(self, name: str) -> Path:
        assert is_name(name), "names are checked where they come in"
        return self.directory / f"{name}.json"

    def _current(self, path: Path) -> Transcript:
        """Read a file, unless that was done since it changed."""
        try:
            stat = path.stat()
        except OSError:
            return transcript.read(path, translate("it is skipped"))  # which says what is wrong
        version = (stat.st_mtime_ns, stat.st_size)
        held = self._read.get(path.stem)
        if held is None or held[0] != version:
            held = self._read[path.stem] = version, _read(path, stat)
        if isinstance(held[1], PromptError):
            raise held[1]
        system, messages = held[1]
        return Transcript(system, list(messages))


def _read(path: Path, stat: os.stat_result) -> Transcript | PromptError:
    """Return what a file holds, or what is wrong with it: it is not read again for each drawing."""
    if not S_ISREG(stat.st_mode) or stat.st_size > _MOST_BYTES:  # a pipe has no end
        return PromptError(
            "{path} is no file of at most {most:,} bytes; it is skipped.",
            path=path,
            most=_MOST_BYTES,
        )
    try:
        return transcript.read(path, translate("it is skipped"))
    except PromptError as error:
        return error


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _texts(conversation: Transcript) -> Iterator[str]:
    yield conversation.system or ""
    yield from (message["content"] for message in conversation.messages)
