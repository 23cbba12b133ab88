"""Reading: the prompt with real keys, completion, history on disk, the editor."""

from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from baichuan.cli import reader
from baichuan.cli.reader import (
    CommandCompleter,
    Prompt,
    history_path,
    open_history,
    without_fence,
    write_in_editor,
)
from baichuan.errors import UsageError

COMMANDS = ["/help", "/set", "/save", "/load", "/show"]


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def read(keys: str, monkeypatch) -> str:
    with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
        monkeypatch.setattr(reader, "create_output", lambda **_: DummyOutput())
        keyboard.send_text(keys)
        return Prompt(COMMANDS).read()


ALT_ENTER, CTRL_C, CTRL_D, CTRL_J, UP = "\x1b\r", "\x03", "\x04", "\n", "\x1b[A"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        (f"one{CTRL_J}two\r", "one\ntwo"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ("\x1b[200~pasted\nlines\n\x1b[201~\r", "pasted\nlines"),
        (f"wrong{CTRL_C}right\r", "right"),
        ("/he\t\r", "/help"),
        ("/set temp\t1\r", "/set temperature1"),
        ("你好\r", "你好"),
    ],
)
def test_keys(keys, message, monkeypatch):
    assert read(keys, monkeypatch) == message


def test_ctrl_d_leaves_and_ctrl_c_on_nothing_is_told(monkeypatch):
    with pytest.raises(EOFError):
        read(CTRL_D, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        read(CTRL_C, monkeypatch)


def test_history_survives(monkeypatch):
    read("remembered\r", monkeypatch)
    assert read(f"{UP}\r", monkeypatch) == "remembered"
    assert history_path().stat().st_mode & 0o777 == 0o600
    assert history_path().parent.stat().st_mode & 0o777 == 0o700


def test_history_takes_bytes_that_are_no_utf8():
    history = open_history()
    history.append_string("half a character \udcff")
    assert isinstance(history, FileHistory)
    assert list(FileHistory(str(history_path())).load_history_strings()) == ["half a character ?"]


def test_history_is_kept_in_memory_where_there_is_no_place(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert isinstance(open_history(), InMemoryHistory)


def test_history_is_in_the_home_without_a_state_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_path() == tmp_path / ".local" / "state" / "baichuan" / "history"


def completions(text: str) -> list[str]:
    found = CommandCompleter(COMMANDS).get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_completion(tmp_path):
    assert completions("/s") == ["/save", "/set", "/show"]
    assert completions("/set top") == ["top_p", "top_k"]
    assert completions("hello") == completions("") == completions("/help x") == []
    (tmp_path / "talk.json").write_text("")
    assert completions(f"/load {tmp_path}/ta") == ["lk.json"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ('"""a\n b"""', "a\n b"),
        ('"""never closed', "never closed"),
        (" a ", "a"),
        ('say """x"""', 'say """x"""'),
    ],
)
def test_fences(typed, message):
    assert without_fence(typed) == message


def editor(tmp_path: Path, script: str) -> str:
    path = tmp_path / "editor with space.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return f"'{path}' -x"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("printf '写下\\n两行\\n' > \"$2\"", "写下\n两行"),
        ("exit 0", ""),  # left without saving
        ('echo no > "$2"; exit 1', ""),  # vim's :cq
    ],
)
def test_editor(tmp_path, monkeypatch, script, message):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor(tmp_path, script))
    assert write_in_editor() == message


@pytest.mark.parametrize("script", ["printf '\\377' > \"$2\"", None])
def test_editor_that_fails_is_a_sentence(tmp_path, monkeypatch, script):
    monkeypatch.setenv("VISUAL", editor(tmp_path, script) if script else "/no/such/editor")
    with pytest.raises(UsageError, match="EDITOR"):
        write_in_editor()
