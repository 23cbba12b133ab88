"""`baichuan chat`: a conversation in the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from baichuan.cli.keyboard import quiet_keyboard
from baichuan.cli.loading import load_draft, load_model
from baichuan.cli.markdown import visible
from baichuan.errors import BaichuanError, UsageError
from baichuan.language import translate

if TYPE_CHECKING:
    from baichuan.cli.commands import Terminal


def run_chat(
    name: str | None,
    *,
    system: str | None,
    speculate: bool | None = None,
    draft: str | None = None,
    **where: Any,
) -> None:
    """Load a model and talk until /bye, Ctrl+D or the end of the input.

    Raises:
        BaichuanError: the model cannot be loaded; or, with a pipe as input, any line fails.
    """
    with quiet_keyboard():
        _run_chat(name, system, speculate, draft, where)


def _run_chat(
    name: str | None,
    system: str | None,
    speculate: bool | None,
    draft: str | None,
    where: dict[str, Any],
) -> None:
    model, tokenizer = load_model(name, **where)
    small = load_draft(draft, tokenizer, where.get("device"))
    from baichuan.chat import Conversation
    from baichuan.cli.commands import Terminal

    console = Console(highlight=False)
    notes = console if console.is_terminal else Console(stderr=True, highlight=False)
    talk = Conversation(model, tokenizer, system, speculate=speculate, draft=small)
    terminal = Terminal(talk, console, notes)
    if sys.stdin.isatty():
        _greet(notes, name or where.get("adapter"))
        _talk(terminal, notes)
    else:
        for line in piped_messages():
            terminal.obey(line)
            if terminal.stopped:
                raise KeyboardInterrupt
            if terminal.left:
                return


def _greet(notes: Console, name: object) -> None:
    shown = translate("demo model") if name is None else str(name)
    notes.print(
        Text(visible(shown), style="bold"), Text("· /help 帮助 · Ctrl+D 退出 exit", style="dim")
    )
    if name is None:
        notes.print(
            translate(
                "A small demo that comes with the package: it knows little and is often wrong.\n"
                "For real answers: baichuan chat baichuan-inc/Baichuan-13B-Chat"
            ),
            style="dim",
        )


def _talk(terminal: Terminal, notes: Console) -> None:
    """Read and obey until the user leaves; an error is shown and the talk goes on."""
    from baichuan.cli.reader import Prompt

    prompt = Prompt(terminal.names)
    while not terminal.left:
        try:
            line = prompt.read()
            if line:
                terminal.obey(line)
        except KeyboardInterrupt:
            notes.print(translate("Ctrl+D or /bye leaves"), style="dim")
        except EOFError:
            return
        except BaichuanError as error:
            notes.print(Text(visible(str(error)), style="red"))


def piped_messages() -> Iterator[str]:
    '''Give the lines of standard input; """ around several lines makes them one message.

    Raises:
        UsageError: the input is not UTF-8.
    '''
    from baichuan.cli.reader import fence_is_open, without_fence

    pending = ""
    for data in sys.stdin.buffer:
        try:
            pending += data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(
                "Standard input is not UTF-8 ({reason}); convert it first.", reason=error
            ) from error
        if fence_is_open(pending):
            continue
        message, pending = without_fence(pending), ""
        if message:
            yield message
    if message := without_fence(pending):
        yield message
