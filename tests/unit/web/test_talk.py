"""What the buttons do: answers kept, stopped, replaced, brought back. The model is a script."""

import queue
import threading

import pytest

pytest.importorskip("platformdirs", reason="needs platformdirs: .[web]")

from baichuan.errors import UsageError
from baichuan.transcript import Transcript
from baichuan.web.conversations import Conversations, new_name
from baichuan.web.models import Piece
from baichuan.web.talk import Talk


class Scripted:
    """Answers with what the test puts in: a text goes on, None ends it, an error fails."""

    name, is_demo, defaults = "script", False, {}

    def __init__(self):
        self.asked, self.replies = [], []

    def answer(self, conversation, settings):
        if "bad" in settings:
            raise UsageError("No sampling parameter is called bad.")
        self.asked.append(conversation)
        self.replies.append(ScriptedReply())
        return self.replies[-1]


class ScriptedReply:
    dropped = 0

    def __init__(self):
        self.given, self.tokens, self.cancelled = queue.Queue(), 0, threading.Event()

    def say(self, *texts, end=True):
        for text in texts:
            self.given.put(text)
        if end:
            self.given.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        given = self.given.get()
        if isinstance(given, Exception):
            raise given
        if given is None:
            raise StopIteration
        self.tokens += 1
        return Piece(given, self.tokens, 7, "eos" if given == "" else None)

    def cancel(self):
        self.cancelled.set()
        self.given.put(None)


@pytest.fixture
def model():
    return Scripted()


@pytest.fixture
def talk(model, tmp_path):
    return Talk(model, Conversations(tmp_path), new_name(), {}, {})


def texts(talk):
    return [message["content"] for message in talk.conversation.messages]


def say(talk, model, text, answer):
    talk.say(text, None, {})
    model.replies[-1].say(answer)
    assert talk.answer.wait(10)


def saved(talk):
    return [m["content"] for m in Conversations(talk._conversations.directory).get(talk.name)[1]]


def hear(talk, text):
    """Wait until an answer on its way says so much."""
    for _ in range(1000):
        if talk.answer.text == text:
            return
        talk.answer.wait(0.01)
    raise AssertionError(talk.answer.text)


def test_question_is_saved_at_once_and_the_answer_when_it_ends(talk, model):
    talk.say("one", "be brief", {})
    assert saved(talk) == ["one"]
    model.replies[0].say("a", "b", end=False)
    hear(talk, "ab")
    assert (talk.running, texts(talk)) == (talk.answer, ["one"])
    model.replies[0].say("c")
    assert talk.answer.wait(10)
    assert talk.running is None
    assert saved(talk) == texts(talk) == ["one", "abc"]
    assert model.asked == [Transcript("be brief", [{"role": "user", "content": "one"}])]
    assert talk.conversation.system == "be brief"
    figures = talk.answer.figures
    assert (figures.tokens, figures.prompt_tokens) == (3, 7)
    assert figures.speed > 0
    assert figures.waited >= 0


def test_stop_keeps_what_was_said(talk, model):
    talk.say("one", None, {})
    model.replies[0].say("ab", end=False)
    hear(talk, "ab")
    talk.stop()
    assert talk.answer.ended
    assert model.replies[0].cancelled.is_set()
    assert texts(talk) == ["one", "ab"]


def test_stop_before_the_first_word_keeps_the_question(talk):
    talk.say("one", None, {})
    talk.stop()
    assert texts(talk) == ["one"]
    assert talk.answer.figures.tokens == 0


def test_an_empty_answer_is_an_answer(talk, model):
    say(talk, model, "one", "")
    assert texts(talk) == ["one", ""]


def test_a_new_message_stops_the_answer_on_its_way(talk, model):
    talk.say("one", None, {})
    model.replies[0].say("half", end=False)
    hear(talk, "half")
    say(talk, model, "two", "whole")
    assert texts(talk) == ["one", "half", "two", "whole"]


def test_regenerate_keeps_the_old_answer_until_the_new_one_speaks(talk, model):
    say(talk, model, "one", "first")
    talk.regenerate(None, {})
    assert saved(talk) == ["one", "first"]
    talk.stop()
    assert texts(talk) == ["one", "first"]
    talk.regenerate(None, {})
    model.replies[-1].say("second")
    assert talk.answer.wait(10)
    assert texts(talk) == ["one", "second"]
    assert [m["content"] for m in model.asked[-1].messages] == ["one"]


def test_regenerate_without_a_question_does_nothing(talk, model):
    talk.regenerate(None, {})
    assert model.asked == []


def test_edit_cuts_and_undo_brings_back(talk, model):
    say(talk, model, "one", "first")
    say(talk, model, "two", "second")
    assert not talk.can_undo
    talk.edit(2, "three", None, {})
    model.replies[-1].say("third")
    assert talk.answer.wait(10)
    assert texts(talk) == ["one", "first", "three", "third"]
    talk.edit(0, "zero", None, {})  # and undone while its answer is on its way
    talk.undo()
    assert texts(talk) == saved(talk) == ["one", "first", "three", "third"]
    assert not talk.can_undo


def test_clear_and_undo(talk, model):
    say(talk, model, "one", "first")
    talk.clear()
    assert texts(talk) == []
    assert talk.answer is None
    talk.undo()
    assert texts(talk) == ["one", "first"]


def test_clear_while_answering_is_not_undone_by_the_answer(talk, model):
    talk.say("one", None, {})
    model.replies[0].say("half", end=False)
    hear(talk, "half")
    talk.clear()
    model.replies[0].say("more")
    assert texts(talk) == []


def test_a_setting_that_cannot_be_changes_nothing(talk, model):
    say(talk, model, "one", "first")
    with pytest.raises(UsageError):
        talk.say("two", None, {"bad": 1})
    with pytest.raises(UsageError):
        talk.edit(0, "two", None, {"bad": 1})
    assert texts(talk) == ["one", "first"]
    assert not talk.can_undo


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UsageError("The context is full."), "The context is full."),
        (MemoryError("no room"), "The answer failed (no room)."),
    ],
)
def test_an_answer_that_fails_keeps_what_was_said(talk, model, error, sentence):
    talk.say("one", None, {})
    model.replies[0].say("half", error, end=False)
    assert talk.answer.wait(10)
    assert talk.answer.error == sentence
    assert texts(talk) == ["one", "half"]


def test_an_answer_that_cannot_be_saved_says_so_and_is_shown(talk, model, monkeypatch):
    talk.say("one", None, {})

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    model.replies[0].say("first")
    assert talk.answer.wait(10)
    assert "is not saved" in talk.answer.error
    assert "No space left" in talk.answer.error
    assert talk.answer.text == "first"


def test_half_a_character_from_a_server_ends_the_answer(talk, model):
    talk.say("one", None, {})
    model.replies[0].say("\ud800")
    assert talk.answer.wait(10)
    assert "is not saved" in talk.answer.error


def test_system_text_is_saved_with_what_was_said(talk, model):
    talk.set_system("lost without messages")
    assert texts(talk) == []
    say(talk, model, "one", "first")
    talk.set_system("be brief")
    assert talk.conversation.system == "be brief"
    assert texts(talk) == ["one", "first"]


def test_another_tab_sees_the_same(talk, model):
    other = Talk(model, talk._conversations, talk.name, talk._answers, {})
    talk.say("one", None, {})
    assert other.running is talk.running
    other.stop()
    assert talk.running is None
