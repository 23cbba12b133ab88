"""Reading what a person writes: the prompt with its keys, completion and history; an editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from baichuan.cli.keyboard import ordinary_keyboard
from baichuan.cli.settings import NAMES
from baichuan.errors import UsageError

#: Encloses a message of several lines; Enter inside it begins a new one.
FENCE = '"""'


class Prompt:
    """The prompt of the chat; each `read` gives one message or command."""

    def __init__(self, commands: Iterable[str]) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=open_history(),
            multiline=True,
            key_bindings=_keys(),
            completer=CommandCompleter(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            prompt_continuation=lambda width, number, wrapped: "" if wrapped else "... ",
            enable_open_in_editor=True,
            output=create_output(always_prefer_tty=True),  # stdout may be a pipe: `| tee`
        )

    def read(self) -> str:
        """Ask once.

        Raises:
            EOFError: Ctrl+D on an empty line.
            KeyboardInterrupt: Ctrl+C on an empty line (on any other it empties the line).
        """
        return without_fence(self._session.prompt(">>> "))


def without_fence(text: str) -> str:
    """Take the triple quotes from around a message, and what is left of lone surrogates."""
    text = text.encode("utf-8", "replace").decode().strip()
    if text.startswith(FENCE):
        text = text[len(FENCE) :].removesuffix(FENCE).strip("\n")
    return text


def fence_is_open(text: str) -> bool:
    """Say whether a message begins with triple quotes that are not closed yet."""
    return text.lstrip().startswith(FENCE) and text.count(FENCE) == 1


def history_path() -> Path:
    """Where messages are remembered: `$XDG_STATE_HOME`, or `~/.local/state` without it."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "baichuan" / "history"


def open_history() -> History:
    """Give the history on disk, or one in memory where it cannot be written."""
    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if path.is_file():  # opening a pipe would wait for its other end
            with path.open("a+b"):
                return _DiskHistory(str(path))
    except OSError:
        pass
    return InMemoryHistory()


class _DiskHistory(FileHistory):
    def store_string(self, string: str) -> None:
        """Remember one message; bytes that were no UTF-8, or a full disk, must not end the chat."""
        with suppress(OSError):
            super().store_string(string.encode("utf-8", "replace").decode())


class CommandCompleter(Completer):
    """Completes commands, the names of settings, and the files of /save and /load."""

    def __init__(self, commands: Iterable[str]) -> None:
        self._commands = sorted(commands)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Give what may stand at the cursor."""
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        if not space:
            yield from _beginning_with(command, self._commands if command else [])
        elif command == "/set":
            yield from _beginning_with(argument, NAMES)
        elif command in ("/save", "/load"):
            path = Document(argument, len(argument))
            yield from self._paths.get_completions(path, complete_event)


def _beginning_with(start: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, -len(start)) for word in words if word.startswith(start))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        if fence_is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @Condition
    def something_typed() -> bool:
        from prompt_toolkit.application import get_app

        return bool(get_app().current_buffer.text)

    @keys.add("c-c", filter=something_typed)
    def _empty(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


def write_in_editor() -> str:
    """Open $VISUAL, $EDITOR or vim on an empty file and give what was saved, perhaps nothing.

    Raises:
        UsageError: the editor cannot be started, or left what is no text.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vim"
    try:
        with tempfile.TemporaryDirectory(prefix="baichuan-") as directory:
            file = Path(directory) / "message.md"
            with ordinary_keyboard():
                ended = subprocess.run([*shlex.split(editor), str(file)], check=False)
            written = file.read_text("utf-8") if file.exists() else ""
    except (OSError, ValueError) as error:
        raise UsageError(
            "The editor {editor!r} failed ({reason}); set EDITOR to one that is installed.",
            editor=editor,
            reason=error,
        ) from error
    return "" if ended.returncode else written.strip()
