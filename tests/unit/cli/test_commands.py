"""Typed lines, obeyed on a real (tiny) conversation."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.conftest import tiny_config

import baichuan
from baichuan.chat import Conversation
from baichuan.cli.commands import Terminal, speed
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.steps import Usage
from baichuan.errors import BaichuanError, UsageError

VOCABULARY = Path(__file__).parents[2] / "data" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def parts():
    config = tiny_config(vocab_size=1000, initializer_range=0.2)
    model = baichuan.BaichuanForCausalLM(config).eval()
    return model, baichuan.BaichuanTokenizer(str(VOCABULARY))


class Session:
    """A terminal whose screen and remarks can be read back."""

    def __init__(self, parts):
        self.talk = Conversation(*parts, max_tokens=6, eos_token_ids=())
        self.screen, self.remarks = io.StringIO(), io.StringIO()
        self.terminal = Terminal(
            self.talk,
            Console(file=self.screen, force_terminal=True, width=60, height=20),
            Console(file=self.remarks, width=60),
        )

    def type(self, *lines: str) -> str:
        """Give the remarks on the last of the lines."""
        for line in lines:
            self.remarks.truncate(self.remarks.seek(0))
            self.terminal.obey(line)
        return self.remarks.getvalue()

    @property
    def said(self) -> list[str]:
        return [m["content"] for m in self.talk.messages if m["role"] == "user"]


@pytest.fixture
def session(parts) -> Session:
    return Session(parts)


def test_message_is_answered_with_a_speed_line(session):
    remarks = session.type("hello")
    assert "answer 6 tokens" in remarks
    assert "max_tokens" in remarks  # it was cut
    assert session.screen.getvalue()
    assert session.said == ["hello"]


@pytest.mark.parametrize(
    "line", ["/usr/bin/env is a path", "//help", "exit now", "clear the table"]
)
def test_what_looks_like_a_command_and_is_none(session, line):
    session.type(line)
    assert session.said == [line.removeprefix("/") if line.startswith("//") else line]


@pytest.mark.parametrize("word", ["exit", "EXIT", "/bye", "/exit", "／bye", "/quit"])
def test_leaving(session, word):
    session.type(word)
    assert session.terminal.left


def test_unknown_command_names_the_nearest(session):
    with pytest.raises(UsageError, match=r"no command /sav; is it /save\?"):
        session.type("/sav talk.json")


def test_help_lists_every_command_in_both_languages(session, monkeypatch):
    english = session.type("/help")
    assert all(name in english for name in session.terminal.names)
    monkeypatch.setenv("BAICHUAN_LANG", "zh")
    for line in ("/", "／", "/ "):  # sent to the model, they would be answered with nonsense
        assert session.type(line.strip()) == session.type("/help")
    assert session.said == []
    chinese = session.type("/?")
    assert all(name in chinese for name in session.terminal.names)
    assert "退出" in chinese


def test_clear_forgets(session):
    session.type("hello", "clear")
    assert session.talk.messages == []
    assert "\x1b[2J" in session.screen.getvalue()


def test_system_is_set_shown_and_removed(session):
    assert "none" in session.type("/system")
    assert "be brief" in session.type("/system be brief")
    assert session.talk.system == "be brief"
    assert "be brief" in session.type("/system")
    session.type("/system none")
    assert session.talk.system is None


def test_set_and_show(session):
    assert "top_k = 40" in session.type("/set top_k 40")
    session.type("/set stop END '\\n'")
    assert session.talk.parameters.stop == ("END", "\n")
    for line in ("/show", "/set"):
        shown = session.type(line)
        assert "('END', '\\n')" in shown
        assert shown.count("set here") == 3  # top_k, stop and the fixture's max_tokens
        assert "temperature" in shown


def test_set_shows_one_setting_and_resets_it(session):
    session.type("/set top_k 40", "/set stop END")
    assert session.type("/set max_tokens") == "max_tokens = 6\n"
    assert session.type("/set top_k") == "top_k = 40\n"
    assert session.type("/set stop") == "stop = ('END',)\n"
    assert session.talk.settings.keys() == {"max_tokens", "eos_token_ids", "top_k", "stop"}
    assert session.type("/set max_tokens default") == "max_tokens = 512\n"
    assert session.type("/set top_k DEFAULT") == f"top_k = {SamplingParams().top_k}\n"
    assert session.talk.settings.keys() == {"eos_token_ids", "stop"}


def test_too_many_new_tokens_are_named_as_the_user_named_them(session):
    with pytest.raises(UsageError, match=r"^max_tokens .* 999999 leaves no room"):
        session.type("/set max_tokens 999999")


@pytest.mark.parametrize(
    "line",
    [
        "/set nothing",
        "/set nothing default",
        "/set top_p 3",
        "/set top_k x",
        "/set nothing 1",
        "/set max_tokens 999999",
    ],
)
def test_set_refuses_and_keeps(session, line):
    before = dict(session.talk.settings)
    with pytest.raises(BaichuanError):
        session.type(line)
    assert session.talk.settings == before


def test_save_and_load(session, parts, tmp_path):
    file = tmp_path / "my talk.json"
    session.type("hello")
    assert "messages: 2" in session.type(f"/save {file}")
    other = Session(parts)
    assert "messages: 2" in other.type(f"/load {file}")
    assert other.talk.messages == session.talk.messages
    for line in ("/save", "/load"):
        with pytest.raises(UsageError, match="Name a file"):
            session.type(line)


def test_retry_says_when_the_answer_will_be_the_same(session):
    with pytest.raises(BaichuanError, match="nothing to answer"):
        session.type("/retry")
    session.type("/set temperature 1", "/set seed 1", "hello")
    before = list(session.talk.messages)
    assert "same" in session.type("/retry")
    assert session.talk.messages == before


def test_undo(session):
    session.type("one", "two")
    assert "messages left: 2" in session.type("/undo")
    assert session.said == ["one"]
    session.type("/undo")
    with pytest.raises(UsageError, match="nothing to take back"):
        session.type("/undo")


def test_stream_toggles(session):
    assert "off" in session.type("stream")
    session.type("hello")
    assert "on" in session.type("/stream")


@pytest.mark.parametrize("line", ["vim", "/edit"])
def test_editor_s_text_is_sent(session, monkeypatch, tmp_path, line):
    script = tmp_path / "editor.sh"
    script.write_text("#!/bin/sh\nprintf 'one\\ntwo\\n' > \"$1\"\n")
    script.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(script))
    session.type(line)
    assert session.said == ["one\ntwo"]
    monkeypatch.setenv("VISUAL", "true")
    assert "nothing is sent" in session.type(line)
    assert session.said == ["one\ntwo"]


def test_speed_of_one_token_is_not_made_up():
    told = speed(Usage(10, 4, 1, 2.0, 0.0))
    assert told == "prompt 10 tokens, 6 of them new (3/s) · answer 1 tokens (-/s)"


def test_what_left_the_context_is_said(parts):
    session = Session(parts)
    assert "context 13 of 4,096 (0%)" in session.type("hello there").replace("\n", " ")
    session.talk.messages = [
        {"role": role, "content": "一" * 1500} for role in ("user", "assistant") * 3
    ]
    remarks = session.type("hello").replace("\n", " ")
    assert "the oldest 4 messages no longer fit" in remarks
    assert "(74%)" in remarks
    assert len(session.talk.messages) == 8
