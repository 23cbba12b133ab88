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
from baichuan.cli.interrupt import Interruptible, quiet_keyboard
from baichuan.cli.language import local
from baichuan.cli.markdown import visible, wrapped
from baichuan.cli.reader import write_in_editor
from baichuan.cli.settings import NAMES, parse_setting
from baichuan.engine.loop import Step, Usage
from baichuan.errors import UsageError

#: The original's words, and what users of other chats type.
_ALIASES = {
    "exit": "/bye",
    "clear": "/clear",
    "vim": "/edit",
    "stream": "/stream",
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
    english: str
    chinese: str
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
            Command("/help", "this list", "本列表", lambda _: self._help()),
            Command("/clear", "forget the conversation", "清空对话", lambda _: self._clear()),
            Command(
                "/system [TEXT]",
                "show or set the system text; none removes it",
                "查看或设置系统提示，none 为删除",
                self._system,
            ),
            Command(
                "/set NAME VALUE", "change a setting; bare: all", "修改参数；单独：全部", self._set
            ),
            Command("/show", "all settings", "全部参数", lambda _: self._show_settings()),
            Command("/save FILE", "write the conversation", "保存对话", self._save),
            Command("/load FILE", "read a conversation", "读取对话", self._load),
            Command("/retry", "answer again", "重新回答", lambda _: self._retry()),
            Command(
                "/undo", "take back a question and its answer", "撤销一轮", lambda _: self._undo()
            ),
            Command(
                "/edit", "write in $EDITOR (vim)", "用 $EDITOR（vim）书写", lambda _: self._edit()
            ),
            Command(
                "/stream",
                "answers as they come, or whole",
                "逐字或整段显示",
                lambda _: self._toggle_stream(),
            ),
            Command("/bye", "leave", "退出", lambda _: self._leave()),
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
            raise UsageError(self._unknown(name))
        else:
            self._answer(self._conversation.say(line))

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._commands, n=1, cutoff=0.7)
        english = f"There is no command {name}"
        chinese = f"没有命令 {name}"
        if near:
            english, chinese = f"{english}; is it {near[0]}?", f"{chinese}；是否为 {near[0]}？"
        return local(
            f"{english} /help lists them all; // begins a message with a slash.",
            f"{chinese} /help 列出全部命令；以 // 开头可发送斜杠开头的消息。",
        )

    def _note(self, english: str, chinese: str) -> None:
        text = Text(visible(local(english, chinese)), style="dim")
        self._notes.print(*wrapped(text, self._notes.width), sep="\n")

    def _help(self) -> None:
        table = Table.grid(padding=(0, 2))
        for command in self._commands.values():
            table.add_row(Text(command.usage), Text(local(command.english, command.chinese)))
        self._notes.print(table)
        self._note(*_KEYS)

    def _clear(self) -> None:
        self._conversation.clear()
        if self._console.is_terminal:
            self._console.clear()
        self._note("the conversation is forgotten", "对话已清空")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text.lower() == "none" else text
        now = self._conversation.system
        self._note(f"system text: {now or 'none'}", f"系统提示：{now or '无'}")

    def _set(self, argument: str) -> None:
        if not argument:
            self._show_settings()
            return
        name, *value = argument.split(maxsplit=1)
        if not value:
            raise UsageError(
                local(
                    "Say what to set and to what, for example: /set temperature 0.3",
                    "请给出参数名和值，例如：/set temperature 0.3",
                )
            )
        self._conversation.change(**{name: parse_setting(name, value[0])})
        now = getattr(self._conversation.parameters, name)
        self._note(f"{name} = {now!r}", f"{name} = {now!r}")

    def _show_settings(self) -> None:
        table = Table.grid(padding=(0, 2))
        for name in NAMES:
            value = getattr(self._conversation.parameters, name)
            here = name in self._conversation.settings
            shown = local("none", "无") if value in (None, ()) else repr(value)
            table.add_row(name, Text(shown), local("set here", "本次设置") if here else "")
        on = local("on", "开") if self._stream else local("off", "关")
        table.add_row("stream", on)
        table.add_row("system", Text(visible(self._conversation.system or local("none", "无"))))
        table.add_row(local("messages", "消息数"), str(len(self._conversation.messages)))
        self._notes.print(table)

    def _save(self, argument: str) -> None:
        path = self._conversation.save(_file(argument, "/save"))
        count = len(self._conversation.messages)
        self._note(f"{count} messages saved in {path}", f"{count} 条消息已保存到 {path}")

    def _load(self, argument: str) -> None:
        path = self._conversation.load(_file(argument, "/load"))
        count = len(self._conversation.messages)
        self._note(f"{count} messages read from {path}", f"已从 {path} 读取 {count} 条消息")

    def _retry(self) -> None:
        steps = self._conversation.retry()
        params = self._conversation.parameters
        if params.temperature == 0 or params.seed is not None:
            self._note(
                "greedy or seeded, the answer is likely the same: /set temperature, /set seed",
                "温度为 0 或种子固定时回答多半相同：可用 /set temperature、/set seed 修改",
            )
        self._answer(steps)

    def _undo(self) -> None:
        if not self._conversation.undo():
            raise UsageError(local("There is nothing to take back.", "没有可撤销的内容。"))
        left = len(self._conversation.messages)
        self._note(f"taken back; {left} messages are left", f"已撤销；还有 {left} 条消息")

    def _edit(self) -> None:
        text = write_in_editor()
        if not text:
            self._note("nothing was saved, nothing is sent", "没有保存内容，未发送")
            return
        self._notes.print(Text(visible(text)))
        self._answer(self._conversation.say(text))

    def _toggle_stream(self) -> None:
        self._stream = not self._stream
        self._note(
            f"stream is {'on' if self._stream else 'off'}",
            f"流式显示已{'开启' if self._stream else '关闭'}",
        )

    def _leave(self) -> None:
        self.left = True

    def _answer(self, steps: Iterator[Step]) -> None:
        """Show an answer and how fast it came; Ctrl+C keeps what was said."""
        with quiet_keyboard(), Interruptible(steps) as answer:
            last = print_answer(self._console, answer, self._stream)
        self.stopped = answer.stopped
        if answer.stopped and last is None:
            self._note(
                "(stopped before the first word; the question is not kept)",
                "（尚未回答即已停止；问题未记入对话）",
            )
        elif answer.stopped:
            self._note("(stopped)", "（已停止）")
        elif last is not None and last.finish_reason == "length":
            self._note(
                "(cut at max_tokens; /set max_tokens allows more)",
                "（达到 max_tokens 上限；可用 /set max_tokens 放宽）",
            )
        if last is not None:
            self._note(*speed(last.usage))
        if self._notes.is_terminal:
            self._notes.print()


_KEYS = (
    'Enter sends. Alt+Enter, Ctrl+J or """ ... """ for several lines. Tab completes. '
    "Ctrl+C stops an answer. Ctrl+D leaves.\n"
    "The words exit, clear, vim, stream work as well.",
    '回车发送；Alt+Enter、Ctrl+J 或 """ ... """ 输入多行；Tab 补全；Ctrl+C 停止回答。\n'
    "Ctrl+D 退出；也可输入 exit、clear、vim、stream。",
)


def speed(usage: Usage) -> tuple[str, str]:
    """Say in English and in Chinese what an answer has cost."""
    new = usage.prompt_tokens - usage.cached_tokens
    prefill = f"{usage.prefill_speed:,.0f}" if usage.prefill_seconds else "-"
    decode = f"{usage.decode_speed:,.1f}" if usage.completion_tokens > 1 else "-"
    return (
        f"prompt {usage.prompt_tokens} tokens, {new} of them new ({prefill}/s) · "
        f"answer {usage.completion_tokens} tokens ({decode}/s)",
        f"提示 {usage.prompt_tokens} 词元，新增 {new}（{prefill}/秒）· "
        f"回答 {usage.completion_tokens} 词元（{decode}/秒）",
    )


def _file(argument: str, command: str) -> str:
    if not argument:
        raise UsageError(
            local(
                f"Name a file, for example: {command} talk.json",
                f"请给出文件名，例如：{command} talk.json",
            )
        )
    return argument
