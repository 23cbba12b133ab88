"""`baichuan chat`: a conversation in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from baichuan.chat import Conversation
from baichuan.checkpoint.load import load
from baichuan.engine.loop import Step
from baichuan.errors import BaichuanError, UsageError

HELP = """\
/help            this list                     /retry           answer again           重新回答
/clear  (clear)  forget the conversation 清空  /undo            take back a turn       撤销一轮
/system TEXT     set the system text 系统提示  /set NAME VALUE  temperature, top_p ... 参数
/save FILE       write the conversation  保存  /load FILE       read one               读取
/stream (stream) rendered or whole      流式   /bye (exit)      leave                  退出
Enter sends; Alt+Enter or Ctrl+J begins a new line. Ctrl+C stops an answer. Ctrl+D leaves.
回车发送，Alt+Enter 或 Ctrl+J 换行；Ctrl+C 停止回答，Ctrl+D 退出。"""

_WORDS = {"exit": "/bye", "clear": "/clear", "stream": "/stream"}


def run_chat(name: str | None, *, system: str | None, **where: Any) -> None:
    """Load a model and talk until /bye or Ctrl+D."""
    console = Console()
    model, tokenizer = load(name, **where)
    shown = "demo model" if name is None else name
    console.print(f"[bold]{shown}[/bold]  /help 帮助 · Ctrl+D 退出 exit")
    if name is None:
        console.print(
            "A demo of few parameters that comes with the package; it knows little. "
            "For real answers: baichuan chat baichuan-inc/Baichuan-13B-Chat\n"
            "随软件附带的小演示模型，所知甚少；真正的回答请用 13B。",
            style="dim",
        )
    Terminal(Conversation(model, tokenizer, system), console).run()


class Terminal:
    """Reads lines, obeys commands, shows answers."""

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self._conversation = conversation
        self._console = console
        self._stream = True

    def run(self) -> None:
        """Loop until the user leaves."""
        history = Path("~/.baichuan_history").expanduser()
        session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)), multiline=True, key_bindings=_keys()
        )
        while True:
            try:
                line = session.prompt("\n> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not line:
                continue
            try:
                if self.obey(line):
                    return
            except BaichuanError as error:
                self._console.print(str(error), style="red", markup=False)

    def obey(self, line: str) -> bool:
        """Carry out one line; say whether it asked to leave."""
        line = _WORDS.get(line.lower(), line)
        if not line.startswith("/"):
            self._show(self._conversation.say(line))
            return False
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command == "/bye":
            return True
        actions = {
            "/help": lambda: self._console.print(HELP, markup=False, highlight=False),
            "/clear": self._conversation.clear,
            "/system": lambda: setattr(self._conversation, "system", argument or None),
            "/set": lambda: self._set(argument),
            "/save": lambda: self._conversation.save(_file(argument)),
            "/load": lambda: self._conversation.load(_file(argument)),
            "/retry": lambda: self._show(self._conversation.retry()),
            "/undo": self._conversation.undo,
            "/stream": self._toggle_stream,
        }
        if command not in actions:
            raise UsageError(f"There is no command {command}; /help lists them.")
        actions[command]()
        return False

    def _toggle_stream(self) -> None:
        self._stream = not self._stream
        self._console.print(f"stream {'on' if self._stream else 'off'}", style="dim")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not value:
            raise UsageError("Say what to set and to what, for example: /set temperature 0.3")
        try:
            number: float = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError as error:
            raise UsageError(f"{value!r} is no number; for example: /set top_p 0.85") from error
        # Building the parameters now finds a wrong name or value before the next answer does.
        from baichuan.engine.sampling import SamplingParams

        SamplingParams().changed(**{name: number})
        self._conversation.settings[name] = number

    def _show(self, steps: Iterator[Step]) -> None:
        """Print an answer as it arrives and how fast it came; Ctrl+C keeps what was said."""
        text, last = "", None
        try:
            with Live(console=self._console, refresh_per_second=12) as live:
                for step in steps:
                    text, last = text + step.text, step
                    if self._stream:
                        live.update(Markdown(text))
                live.update(Markdown(text))
        except KeyboardInterrupt:
            steps.close()  # type: ignore[attr-defined]
            self._console.print("(stopped 已停止)", style="dim")
        if last is not None:
            usage = last.usage
            self._console.print(
                f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached, "
                f"{usage.prefill_speed:.0f}/s) · {usage.completion_tokens} tokens "
                f"({usage.decode_speed:.1f}/s)",
                style="dim",
                highlight=False,
            )


def _file(argument: str) -> str:
    if not argument:
        raise UsageError("Name a file, for example: /save talk.json")
    return argument


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
