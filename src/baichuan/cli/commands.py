"""What can be typed in the chat: messages, slash commands, and the words of the original chat."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from baichuan.chat import Conversation
from baichuan.cli.answer import print_answer
from baichuan.cli.interrupt import Interruptible
from baichuan.cli.markdown import visible, wrapped
from baichuan.cli.reader import write_in_editor
from baichuan.cli.settings import NAMES, check_name, parse_setting
from baichuan.engine.steps import Step, Usage
from baichuan.errors import UsageError
from baichuan.language import phrase, translate
from baichuan.model.prompt import context_use

#: The original's words, and what users of other chats type.
_ALIASES = {
    "exit": "/bye",
    "clear": "/clear",
    "vim": "/edit",
    "stream": "/stream",
    "/": "/help",
    "/?": "/help",
    "/exit": "/bye",
    "/quit": "/bye",
    "/vim": "/edit",
}
#: A slash and one word; `/usr/bin` is none, so a message may begin with a path.
_COMMAND = re.compile(r"/[\w?]+")


@dataclass(frozen=True)
class Command:
    """One slash command: how it is written, what it does, and the action on its argument."""

    usage: str
    purpose: str
    act: Callable[[str], None]


class Terminal:
    """Obeys one typed line at a time; shows answers on `console`, its own remarks on `notes`.

    Attributes:
        left: whether the user asked to leave.
        stopped: whether Ctrl+C ended the latest answer.
    """

    def __init__(self, conversation: Conversation, console: Console, notes: Console) -> None:
        self._conversation = conversation
        self._console = console
        self._notes = notes
        self._stream = True
        self.left = False
        self.stopped = False
        table = (
            Command("/help", phrase("this list"), lambda _: self._help()),
            Command("/clear", phrase("forget the conversation"), lambda _: self._clear()),
            Command(
                "/system [TEXT]",
                phrase("show or set the system text; none removes it"),
                self._system,
            ),
            Command(
                "/set [NAME [VALUE]]",
                phrase("show or change settings; default resets one"),
                self._set,
            ),
            Command("/show", phrase("all settings"), lambda _: self._show_settings()),
            Command("/save FILE", phrase("write the conversation"), self._save),
            Command("/load FILE", phrase("read a conversation"), self._load),
            Command("/retry", phrase("answer again"), lambda _: self._retry()),
            Command("/undo", phrase("take back a question and its answer"), lambda _: self._undo()),
            Command("/edit", phrase("write in $EDITOR (vim)"), lambda _: self._edit()),
            Command(
                "/stream", phrase("answers as they come, or whole"), lambda _: self._toggle_stream()
            ),
            Command("/bye", phrase("leave"), lambda _: self._leave()),
        )
        self._commands = {command.usage.split()[0]: command for command in table}

    @property
    def names(self) -> list[str]:
        """All commands, with their slash."""
        return list(self._commands)

    def obey(self, line: str) -> None:
        """Carry out one line: a command, or a message to the model.

        Raises:
            BaichuanError: a sentence for the user; the conversation is as before.
        """
        if line.startswith("／"):  # what a Chinese input method types
            line = "/" + line[1:]
        word, *rest = line.split(maxsplit=1)
        line_is_word = not rest and word.lower() in _ALIASES
        name = _ALIASES[word.lower()] if line_is_word else word
        if line.startswith("//"):
            self._answer(self._conversation.say(line[1:]))
        elif name in self._commands:
            self._commands[name].act(rest[0].strip() if rest else "")
        elif _COMMAND.fullmatch(name):
            raise self._unknown(name)
        else:
            self._answer(self._conversation.say(line))

    def _unknown(self, name: str) -> UsageError:
        near = difflib.get_close_matches(name, self._commands, n=1, cutoff=0.7)
        if near:
            return UsageError(
                "There is no command {name}; is it {near}? /help lists them all; // begins a "
                "message with a slash.",
                name=name,
                near=near[0],
            )
        return UsageError(
            "There is no command {name}. /help lists them all; // begins a message with a slash.",
            name=name,
        )

    def _note(self, remark: str) -> None:
        text = Text(visible(remark), style="dim")
        self._notes.print(*wrapped(text, self._notes.width), sep="\n")

    def _help(self) -> None:
        table = Table.grid(padding=(0, 2))
        for command in self._commands.values():
            table.add_row(Text(command.usage), Text(translate(command.purpose)))
        self._notes.print(table)
        self._note(translate(_KEYS))

    def _clear(self) -> None:
        self._conversation.clear()
        if self._console.is_terminal:
            self._console.clear()
        self._note(translate("the conversation is forgotten"))

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text.lower() == "none" else text
        now = self._conversation.system or translate("none")
        self._note(translate("system text: {text}", text=now))

    def _set(self, argument: str) -> None:
        if not argument:
            self._show_settings()
            return
        name, *value = argument.split(maxsplit=1)
        if value and value[0].lower() == "default":
            self._conversation.reset(check_name(name))
        elif value:
            self._conversation.change(**{name: parse_setting(name, value[0])})
        self._note(f"{name} = {getattr(self._conversation.parameters, check_name(name))!r}")

    def _show_settings(self) -> None:
        table = Table.grid(padding=(0, 2))
        for name in NAMES:
            value = getattr(self._conversation.parameters, name)
            here = name in self._conversation.settings
            shown = translate("none") if value in (None, ()) else repr(value)
            table.add_row(name, Text(shown), translate("set here") if here else "")
        table.add_row("stream", translate("on") if self._stream else translate("off"))
        system = self._conversation.system or translate("none")
        table.add_row("system", Text(visible(system)))
        table.add_row(translate("messages"), str(len(self._conversation.messages)))
        self._notes.print(table)

    def _save(self, argument: str) -> None:
        path = self._conversation.save(_file(argument, "/save"))
        count = len(self._conversation.messages)
        self._note(translate("messages: {count}, saved in {path}", path=path, count=count))

    def _load(self, argument: str) -> None:
        path = self._conversation.load(_file(argument, "/load"))
        count = len(self._conversation.messages)
        self._note(translate("messages: {count}, read from {path}", path=path, count=count))

    def _retry(self) -> None:
        steps = self._conversation.retry()
        params = self._conversation.parameters
        if params.temperature == 0 or params.seed is not None:
            self._note(
                translate(
                    "greedy or seeded, the answer is likely the same: /set temperature, /set seed"
                )
            )
        self._answer(steps)

    def _undo(self) -> None:
        if not self._conversation.undo():
            raise UsageError("There is nothing to take back.")
        left = len(self._conversation.messages)
        self._note(translate("taken back; messages left: {count}", count=left))

    def _edit(self) -> None:
        text = write_in_editor()
        if not text:
            self._note(translate("nothing was saved, nothing is sent"))
            return
        self._notes.print(Text(visible(text)))
        self._answer(self._conversation.say(text))

    def _toggle_stream(self) -> None:
        self._stream = not self._stream
        self._note(translate("stream is on") if self._stream else translate("stream is off"))

    def _leave(self) -> None:
        self.left = True

    def _answer(self, steps: Iterator[Step]) -> None:
        """Show an answer and how fast it came; Ctrl+C keeps what was said."""
        with Interruptible(steps) as answer:
            last = print_answer(self._console, answer, self._stream)
        self.stopped = answer.stopped
        if answer.stopped and last is None:
            self._note(translate("(stopped before the first word; the question is not kept)"))
        elif answer.stopped:
            self._note(translate("(stopped)"))
        elif last is not None and last.finish_reason == "length":
            self._note(translate("(cut at max_tokens; /set max_tokens allows more)"))
        if last is not None:
            self._note_context(last.usage)
        if self._notes.is_terminal:
            self._notes.print()

    def _note_context(self, usage: Usage) -> None:
        """Say what an answer has cost, how full the context is, and what no longer fits in."""
        talk = self._conversation
        full = context_use(usage.prompt_tokens + usage.completion_tokens, talk.context_length)
        self._note(f"{speed(usage)} · {full}")
        if talk.dropped:
            self._note(
                translate(
                    "(the oldest {count} messages no longer fit into the context: the model did "
                    "not see them)",
                    count=talk.dropped,
                )
            )


_KEYS = phrase(
    'Enter sends. Alt+Enter, Ctrl+J or """ ... """ for several lines. Tab completes. '
    "Ctrl+C stops an answer. Ctrl+D leaves.\n"
    "The words exit, clear, vim, stream work as well."
)


def speed(usage: Usage) -> str:
    """Say what an answer has cost."""
    return translate(
        "prompt {prompt} tokens, {new} of them new ({prefill}/s) · answer {answer} tokens "
        "({decode}/s)",
        prompt=usage.prompt_tokens,
        new=usage.prompt_tokens - usage.cached_tokens,
        prefill=f"{usage.prefill_speed:,.0f}" if usage.prefill_seconds else "-",
        answer=usage.completion_tokens,
        decode=f"{usage.decode_speed:,.1f}" if usage.completion_tokens > 1 else "-",
    )


def _file(argument: str, command: str) -> str:
    if not argument:
        raise UsageError("Name a file, for example: {command} talk.json", command=command)
    return argument
