"""A conversation: what is kept when an answer ends, is stopped or fails; its files."""

import json
from pathlib import Path

import pytest
from tests.conftest import tiny_config

import baichuan
from baichuan.chat import Conversation
from baichuan.engine.cache import SequenceCache
from baichuan.errors import ContextLengthError, PromptError, UsageError

VOCABULARY = Path(__file__).parents[1] / "data" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def parts():
    config = tiny_config(vocab_size=1000, initializer_range=0.2)
    model = baichuan.BaichuanForCausalLM(config).eval()
    return model, baichuan.BaichuanTokenizer(str(VOCABULARY))


@pytest.fixture
def talk(parts) -> Conversation:
    return Conversation(*parts, max_tokens=12, eos_token_ids=())


def texts(talk: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in talk.messages]


def say(talk: Conversation, text: str) -> str:
    return "".join(step.text for step in talk.say(text))


def test_answer_enters_the_messages_with_its_question(talk):
    answer = say(talk, "hello")
    assert texts(talk) == [("user", "hello"), ("assistant", answer)]


def test_stopped_answer_keeps_what_was_said(talk):
    steps = talk.say("hello")
    said = next(steps).text + next(steps).text
    steps.close()
    assert said
    assert texts(talk) == [("user", "hello"), ("assistant", said)]
    say(talk, "again")
    assert len(talk.messages) == 4


def test_stop_before_the_first_token_leaves_the_conversation_as_it_was(talk, parts, monkeypatch):
    say(talk, "hello")
    before = texts(talk)

    real = SequenceCache.append
    calls = iter([False, True])  # layer 0 appends, layer 1 is interrupted: a pass by half

    def interrupted(self, layer, key, value):
        if next(calls):
            raise KeyboardInterrupt
        return real(self, layer, key, value)

    monkeypatch.setattr(SequenceCache, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        say(talk, "interrupted")
    monkeypatch.setattr(SequenceCache, "append", real)
    assert texts(talk) == before

    fresh = Conversation(*parts, **talk.settings)
    fresh.messages = list(talk.messages)
    assert say(talk, "next") == say(fresh, "next")


def test_a_draft_reads_each_turn_once(parts):
    class Counted:
        """A draft that counts the tokens of each of its passes."""

        def __init__(self, model):
            self._model, self.read = model, []

        def __getattr__(self, name):
            return getattr(self._model, name)

        def forward_chunks(self, chunks):
            self.read += [len(chunk.tokens) for chunk in chunks]
            return self._model.forward_chunks(chunks)

    draft = Counted(parts[0])
    settings = {"max_tokens": 30, "eos_token_ids": (), "temperature": 0}
    plain = Conversation(*parts, speculate=False, **settings)
    drafted = Conversation(*parts, draft=draft, **settings)
    most = []
    for text in ("hello " * 200, "again"):
        draft.read.clear()
        assert say(drafted, text) == say(plain, text)
        most.append(max(draft.read))
    assert most[0] > 300 > 150 > most[1]  # at most a block, an answer and a question


def test_an_answer_that_is_empty_is_an_answer(talk, parts):
    first = next(talk.say("hello")).token
    silent = Conversation(*parts, max_tokens=12, eos_token_ids=(first,))
    assert say(silent, "hello") == ""
    assert texts(silent) == [("user", "hello"), ("assistant", "")]


def test_retry_replaces_the_answer_only_once_it_has_begun(talk):
    say(talk, "hello")
    before = texts(talk)
    never_started = talk.retry()
    never_started.close()
    assert texts(talk) == before
    talk.change(max_tokens=2)
    shorter = "".join(step.text for step in talk.retry())
    assert texts(talk) == [("user", "hello"), ("assistant", shorter)]
    assert shorter != before[1][1]


def test_retry_needs_a_question(talk):
    with pytest.raises(PromptError, match="say something first"):
        talk.retry()
    talk.messages = [{"role": "assistant", "content": "alone"}]
    with pytest.raises(PromptError):
        talk.retry()
    assert texts(talk) == [("assistant", "alone")]


def test_undo_takes_back_one_round_and_says_so(talk):
    assert talk.undo() is False
    say(talk, "one")
    first_round = texts(talk)
    say(talk, "two")
    assert talk.undo() is True
    assert texts(talk) == first_round
    assert talk.undo() is True
    assert texts(talk) == []


def test_undo_leaves_what_holds_no_question(talk):
    talk.messages = [{"role": "assistant", "content": "greeting"}]
    assert talk.undo() is False
    assert len(talk.messages) == 1


def test_change_is_checked_at_once_and_whole(talk):
    with pytest.raises(UsageError, match="top_p"):
        talk.change(temperature=0.5, top_p=3.0)
    with pytest.raises(UsageError, match="no room"):
        talk.change(max_tokens=1_000_000)
    assert talk.settings == {"max_tokens": 12, "eos_token_ids": ()}
    talk.change(temperature=0.5)
    assert talk.parameters.temperature == 0.5
    assert talk.parameters.max_tokens == 12


def test_saved_conversation_comes_back(talk, parts, tmp_path):
    talk.system = "简短回答"
    say(talk, "你好")
    path = talk.save(tmp_path / "talk.json")
    other = Conversation(*parts)
    other.load(path)
    assert (other.system, other.messages) == (talk.system, talk.messages)
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]
    assert "你好" in path.read_text("utf-8")


def test_save_replaces_a_conversation_but_nothing_else(talk, tmp_path):
    talk.save(tmp_path / "talk.json")
    say(talk, "hello")
    talk.save(tmp_path / "talk.json")
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 2
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary")
    with pytest.raises(PromptError, match="not overwritten"):
        talk.save(notes)
    assert notes.read_text() == "dear diary"


def test_save_that_fails_leaves_nothing(talk, tmp_path):
    with pytest.raises(PromptError, match="No such file"):
        talk.save(tmp_path / "no" / "such" / "talk.json")
    target = tmp_path / "talk.json"
    talk.save(target)
    kept = target.read_text()
    talk.messages = [{"role": "user", "content": "\ud800"}]  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        talk.save(target)
    assert target.read_text() == kept
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_save_follows_links(talk, tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    talk.save(real)
    link.symlink_to(real)
    say(talk, "hello")
    talk.save(link)
    assert link.is_symlink()
    assert "hello" in real.read_text()


BROKEN = {
    "not JSON": "{",
    "no object": "[1, 2]",
    "no messages": "{}",
    "messages no list": '{"messages": "x"}',
    "message no object": '{"messages": [3]}',
    "wrong role": '{"messages": [{"role": "robot", "content": "x"}]}',
    "system inside": '{"messages": [{"role": "system", "content": "x"}]}',
    "role unhashable": '{"messages": [{"role": ["user"], "content": "x"}]}',
    "content no text": '{"messages": [{"role": "user", "content": 3}]}',
    "content missing": '{"messages": [{"role": "user"}]}',
    "half a character": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "system no text": '{"system": 3, "messages": []}',
    "nested too deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_refused_and_nothing_is_lost(talk, tmp_path, content):
    say(talk, "hello")
    talk.system = "kept"
    before = texts(talk)
    file = tmp_path / "broken.json"
    file.write_text(content)
    with pytest.raises(PromptError, match=r"no saved conversation.*kept"):
        talk.load(file)
    assert (talk.system, texts(talk)) == ("kept", before)


def test_unreadable_file_is_a_sentence(talk, tmp_path):
    with pytest.raises(PromptError, match="No such file"):
        talk.load(tmp_path / "nowhere.json")
    with pytest.raises(PromptError, match="directory"):
        talk.load(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="no saved conversation"):
        talk.load(tmp_path / "bytes")


def test_next_turn_computes_its_new_tokens_only(parts, tmp_path):
    talk = Conversation(*parts, max_tokens=4, eos_token_ids=())
    talk.messages = [{"role": "user", "content": "一" * 50}, {"role": "assistant", "content": "二"}]
    *_, last = talk.say("三")
    *_, again = talk.retry()
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert last.usage.cached_tokens == 0


@pytest.fixture
def short(parts) -> Conversation:
    """A conversation whose context is 64 tokens; every 一 is one of them."""
    config = tiny_config(vocab_size=1000, initializer_range=0.2, model_max_length=64)
    model = baichuan.BaichuanForCausalLM(config).eval()
    return Conversation(model, parts[1], eos_token_ids=())


def test_rounds_that_no_longer_fit_are_counted(short):
    short.change(max_tokens=10)
    dropped = []
    for _ in range(6):
        *_, last = short.say("一" * 8)
        assert last.usage.prompt_tokens + 10 <= 64
        dropped.append(short.dropped)
    assert dropped[:2] == [0, 0]
    assert dropped[-1] > dropped[2] >= 0
    assert all(count % 2 == 0 for count in dropped)  # whole rounds
    assert len(short.messages) == 12  # they are left out, not forgotten


def test_a_long_message_shortens_the_answer_or_is_refused(short):
    *_, last = short.say("一" * 50)  # beside half a context of answer it would not fit
    prompt = last.usage.prompt_tokens
    assert prompt > 50
    assert last.usage.completion_tokens == 64 - prompt
    before = texts(short)
    for text, settings in (("一" * 50, {"max_tokens": 20}), ("一" * 70, {})):
        refused = Conversation(short._model, short._tokenizer, **settings)
        with pytest.raises(ContextLengthError, match="64 tokens together"):
            say(refused, text)
        assert refused.messages == []
    short.system = "二" * 60  # it counts, too
    with pytest.raises(ContextLengthError):
        say(short, "一")
    assert texts(short) == before
