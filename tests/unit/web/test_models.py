"""Who answers in this process: the demo model, through the engine that all conversations share."""

import pytest

from baichuan.chat import Conversation
from baichuan.checkpoint.load import load
from baichuan.errors import UsageError
from baichuan.transcript import Transcript
from baichuan.web.models import SETTINGS, open_model
from baichuan.web.options import Options


@pytest.fixture(scope="module")
def model():
    return open_model(Options())


def asked(*texts, system=None):
    roles = ("user", "assistant")
    return Transcript(system, [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)])


def test_the_answer_is_that_of_the_chat(model):
    talk = Conversation(*load(), max_tokens=12)
    steps = list(talk.say("世界上第二高的山峰是哪座"))
    pieces = list(model.answer(asked("世界上第二高的山峰是哪座"), {"max_tokens": 12}))
    assert "".join(p.text for p in pieces) == "".join(step.text for step in steps)
    assert pieces[-1].tokens == len(steps)
    assert pieces[-1].prompt_tokens == steps[-1].usage.prompt_tokens
    assert pieces[-1].finish_reason == "length"


def test_the_system_text_and_earlier_turns_are_in_the_prompt(model):
    def prompt_tokens(conversation):
        return next(iter(model.answer(conversation, {}))).prompt_tokens

    alone = prompt_tokens(asked("hello"))
    assert prompt_tokens(asked("hello", system="be brief")) > alone
    assert prompt_tokens(asked("hello", "hi", "hello")) > alone


def test_the_next_turn_does_not_compute_the_earlier_ones_again(model):
    text = "世界上第二高的山峰是哪座" * 12
    *_, first = model.answer(asked(text), {"max_tokens": 8})
    before = model._runner.stats().cached_tokens
    *_, second = model.answer(asked(text, "乔戈里峰", "hello"), {"max_tokens": 8})
    reused = model._runner.stats().cached_tokens - before
    assert 0 < reused < first.prompt_tokens < second.prompt_tokens


def test_cancel_ends_the_reply(model):
    reply = model.answer(asked("写一首诗"), {"max_tokens": 200})
    next(reply)
    reply.cancel()
    assert len(list(reply)) < 199


def test_defaults_and_name_are_the_models_own(model):
    assert tuple(model.defaults) == SETTINGS
    assert (model.defaults["temperature"], model.defaults["max_tokens"]) == (0.0, 256)
    assert (model.name, model.is_demo) == ("demo · float32", True)
    quantized = open_model(Options(bits=8))
    assert quantized.name == "demo · int8"


def test_a_setting_that_cannot_be_is_a_sentence(model):
    with pytest.raises(UsageError, match="no room"):
        model.answer(asked("hello"), {"max_tokens": 1_000_000})
