"""Sessions of `baichuan chat` on a pseudo-terminal, typed and read as a person would."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

ROWS, COLUMNS = 15, 80
CTRL_C, CTRL_D, ALT_ENTER = "\x03", "\x04", "\x1b\r"


class Session:
    """A running chat and the terminal that it draws on."""

    def __init__(self, state: Path, *arguments: str, **environment: str) -> None:
        self._screen = pyte.HistoryScreen(COLUMNS, ROWS, history=10_000, ratio=0.5)
        self._stream = pyte.Stream(self._screen)
        self._typed_at = 0
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "baichuan.cli.main", "chat", *arguments],
            env={
                **os.environ,
                "TERM": "xterm-256color",
                "LC_ALL": "C.UTF-8",
                "OMP_NUM_THREADS": "1",
                "XDG_STATE_HOME": str(state),
                **environment,
            },
            dimensions=(ROWS, COLUMNS),
            encoding="utf-8",
        )
        self.wait_for_prompt()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Draw what the chat prints until a condition holds, a minute at most."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines[-ROWS:])
            try:
                printed = self.process.read_nonblocking(4096, timeout=1)
            except pexpect.TIMEOUT:
                continue
            self._stream.feed(printed)
            if "\x1b[6n" in printed:  # the chat asks where the cursor is
                self.process.send(f"\x1b[{self._screen.cursor.y + 1};1R")

    def wait_for(self, text: str) -> None:
        """Wait until a text appears below what was typed last."""
        self.wait_until(lambda: text in "\n".join(self.lines[self._typed_at :]))

    def wait_for_prompt(self) -> None:
        self.wait_until(lambda: self._screen.display[self._screen.cursor.y].rstrip() == ">>>")

    def send(self, keys: str) -> None:
        """Press keys at the cursor."""
        self._typed_at = len(self._screen.history.top) + self._screen.cursor.y
        self.process.send(keys)

    def type(self, line: str, awaited: str, end: str = "\r") -> None:
        """Type a line, wait for a text below it, and for the next prompt."""
        self.send(line + end)
        self.wait_for(awaited)
        self.wait_for_prompt()

    def leave(self, keys: str = CTRL_D) -> None:
        """Leave as a person does; the chat must end well."""
        self.process.send(keys)
        self.process.expect(pexpect.EOF, timeout=60)
        self.process.close()
        assert self.process.exitstatus == 0

    @property
    def lines(self) -> list[str]:
        """All that the terminal shows, scrolled-back lines first."""
        old = ["".join(row[x].data for x in range(COLUMNS)) for row in self._screen.history.top]
        return [line.rstrip() for line in [*old, *self._screen.display]]


@pytest.fixture
def start(tmp_path, checkpoint) -> Iterator:
    sessions: list[Session] = []

    def begin(demo: bool = False, **environment: str) -> Session:
        model = [] if demo else [str(checkpoint)]
        sessions.append(Session(tmp_path / "state", *model, **environment))
        return sessions[-1]

    yield begin
    for session in sessions:
        session.process.close(force=True)


def saved(session: Session, file: Path) -> list[tuple[str, str]]:
    session.type(f"/save {file}", "saved in")
    return [(m["role"], m["content"]) for m in json.loads(file.read_text("utf-8"))["messages"]]


def test_demo_says_that_it_is_one_and_answers(start):
    session = start(demo=True)
    session.type("/system", "system text")
    session.type("世界上第二高的山是什么山", "answer")
    shown = "\n".join(session.lines)
    assert "small demo" in shown
    assert "Baichuan-13B-Chat" in shown
    assert "Loading weights" not in shown
    session.leave()


def test_answer_lines_history_and_files(start, tmp_path):
    file = tmp_path / "talk.json"
    session = start()
    session.type("/set max_tokens 6", "max_tokens = 6")
    session.type("hello", "answer 6 tokens")
    session.type(f"one{ALT_ENTER}two", "answer 6 tokens")
    session.type('"""three\rfour"""', "answer 6 tokens")
    session.type("\x1b[200~pasted\nlines\x1b[201~", "answer 6 tokens")
    messages = saved(session, file)
    asked = [content for role, content in messages if role == "user"]
    assert asked == ["hello", "one\ntwo", "three\nfour", "pasted\nlines"]
    session.type("/undo", "messages left: 6")
    session.send("/clear\r")
    session.wait_until(lambda: session.lines[-ROWS].endswith("forgotten"))  # on an empty screen
    session.wait_for_prompt()
    session.type(f"/load {file}", "messages: 8, read")
    session.type("/set top_k many", "whole number")
    session.type("/load /no/such/file", "cannot be read")
    assert saved(session, tmp_path / "again.json") == messages
    session.leave()

    later = start()
    later.send("\x1b[A")  # the arrow upwards
    later.wait_for("/save")
    later.send(CTRL_C)
    later.leave()


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(start, tmp_path):
    session = start()
    session.type("/set max_tokens 100000", "max_tokens = 100000")
    session.send("hello\r")
    session.wait_until(lambda: len(session.lines) > 3 * ROWS)  # it scrolls while it comes
    session.send(CTRL_C)
    session.wait_for("(stopped)")
    session.wait_for_prompt()
    (_, question), (role, answer) = saved(session, tmp_path / "talk.json")
    assert (question, role) == ("hello", "assistant")
    assert len(answer) > ROWS * COLUMNS
    shown = "".join("".join(session.lines).split())
    words = [word for word in answer.split() if word.isalnum()]
    assert words
    assert [word for word in words if word not in shown] == []
    session.type("/set max_tokens 5", "max_tokens = 5")
    session.type("again", "answer 5 tokens")
    assert len(saved(session, tmp_path / "talk.json")) == 4
    session.leave()


def test_what_is_typed_ahead_is_sent_when_its_turn_comes(start, tmp_path):
    """Enter, Backspace and the rest mean what they mean at the prompt."""
    session = start()
    session.type("/set max_tokens 300", "max_tokens = 300")
    session.send("first\r")
    session.wait_until(lambda: len(session.lines) > ROWS)
    session.process.send("secomd\x7f\x7fnd\rthird\x15/set max_tokens 5\rfourth\r")
    session.wait_for("answer 5 tokens")
    session.wait_for_prompt()
    asked = [content for role, content in saved(session, tmp_path / "talk.json") if role == "user"]
    assert asked == ["first", "second", "fourth"]
    session.leave()


def test_ctrl_c_at_the_prompt_empties_the_line(start, tmp_path):
    session = start()
    session.type("/set max_tokens 5", "max_tokens = 5")
    session.send("never sent")
    session.wait_for("never sent")
    session.send(CTRL_C)
    session.type("sent", "answer 5 tokens")
    session.type(CTRL_C, "/bye leaves", end="")
    assert saved(session, tmp_path / "talk.json")[0] == ("user", "sent")
    session.leave()


def test_vim_sends_what_was_written(start, tmp_path):
    editor = tmp_path / "editor.sh"
    editor.write_text("#!/bin/sh\nprintf 'first\\nsecond\\n' > \"$1\"\n")
    editor.chmod(0o700)
    session = start(EDITOR=str(editor), VISUAL="")
    session.type("/set max_tokens 5", "max_tokens = 5")
    session.type("vim", "answer 5 tokens")
    assert saved(session, tmp_path / "talk.json")[0] == ("user", "first\nsecond")
    editor.write_text("#!/bin/sh\n")
    session.type("vim", "nothing is sent")
    editor.unlink()
    session.type("vim", "EDITOR")
    session.leave()


def test_chinese_session_and_the_word_exit(start):
    session = start(BAICHUAN_LANG="zh")
    session.type("/set max_tokens 5", "max_tokens = 5")
    session.type("stream", "流式显示已关闭")
    session.type("你好", "回答 5 词元")
    session.type("/undo", "已撤销")
    session.type("/undo", "没有可撤销的内容")
    session.leave("exit\r")
