"""Saved conversations: what is found, what is left alone, what another process may do meanwhile."""

import json
import os

import pytest

pytest.importorskip("platformdirs", reason="needs platformdirs: .[web]")

from baichuan.errors import PromptError
from baichuan.transcript import Transcript
from baichuan.web.conversations import (
    EMPTY,
    Conversations,
    data_directory,
    is_name,
    new_name,
    title,
)


def talk(*texts, system=None):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return Transcript(system, messages)


@pytest.fixture
def conversations(tmp_path):
    return Conversations(tmp_path / "data" / "conversations")


def put(conversations, conversation, time):
    name = new_name()
    conversations.put(name, conversation)
    os.utime(conversations.directory / f"{name}.json", (time, time))
    return name


def test_what_is_put_is_there_for_others_too(conversations):
    name, said = new_name(), talk("你好", "hello", system="be brief")
    assert conversations.get(name) == EMPTY
    assert conversations.find() == []
    conversations.put(name, said)
    assert conversations.get(name) == said
    assert Conversations(conversations.directory).get(name) == said
    assert conversations.directory.stat().st_mode & 0o077 == 0
    assert (conversations.directory / f"{name}.json").stat().st_mode & 0o077 == 0


def test_a_conversation_without_messages_is_deleted(conversations):
    name = new_name()
    conversations.put(name, talk("hello"))
    conversations.put(name, talk(system="kept by nobody"))
    assert list(conversations.directory.iterdir()) == []
    conversations.put(name, talk())


def test_newest_first_and_by_words(conversations):
    old = put(conversations, talk("Which mountain?", "K2 乔戈里峰"), 1_000)
    new = put(conversations, talk("hello", "HI", system="about mountains"), 2_000)
    assert [entry.name for entry in conversations.find()] == [new, old]
    assert [entry.name for entry in conversations.find("MOUNTAIN")] == [new, old]
    assert [entry.name for entry in conversations.find("k2 which")] == [old]
    assert [entry.name for entry in conversations.find("hi mountains")] == [new, old][:1]
    assert conversations.find("k2 hello") == []


def test_titles():
    assert title(talk("\n two\n lines ")) == "two lines"
    assert title(talk(" ", "answer")) == "answer"
    assert len(title(talk("长" * 100))) == 60
    assert title(talk()) == "New conversation"


def test_what_others_change_is_seen(conversations):
    name = new_name()
    conversations.put(name, talk("one"))
    assert conversations.get(name) == talk("one")
    Conversations(conversations.directory).put(name, talk("other"))
    assert conversations.get(name) == talk("other")


def test_messages_given_out_are_the_callers(conversations):
    name = new_name()
    conversations.put(name, talk("one", "two"))
    conversations.get(name).messages.clear()
    assert conversations.get(name) == talk("one", "two")


def test_foreign_and_broken_files_are_left_alone(conversations):
    good, broken = new_name(), new_name()
    conversations.put(good, talk("hello"))
    others = {"notes.json": "{}", f"{broken}.json": "{", "README": "hello"}
    for file, text in others.items():
        (conversations.directory / file).write_text(text)
    assert [entry.name for entry in conversations.find()] == [good]
    with pytest.raises(PromptError, match="no saved conversation"):
        conversations.get(broken)
    for file, text in others.items():
        assert (conversations.directory / file).read_text() == text


def test_the_file_is_that_of_the_chat(conversations):
    name = new_name()
    conversations.put(name, talk("hello", system="brief"))
    content = json.loads((conversations.directory / f"{name}.json").read_text())
    assert content == {"system": "brief", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "ABCDEF0123456789", "0" * 15, "0" * 17])
def test_only_our_names_become_paths(text):
    assert not is_name(text)
    assert is_name(new_name())


def test_the_directory_is_the_systems(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert data_directory() == tmp_path / "baichuan" / "conversations"


def test_what_is_no_file_of_ours_is_skipped(conversations, tmp_path, monkeypatch):
    good = new_name()
    conversations.put(good, talk("hello"))
    strange = {kind: conversations.directory / f"{new_name()}.json" for kind in STRANGE}
    os.mkfifo(strange["pipe"])
    strange["directory"].mkdir()
    strange["device"].symlink_to("/dev/zero")
    strange["dangling"].symlink_to(tmp_path / "absent")
    strange["sparse"].touch()
    os.truncate(strange["sparse"], 100 << 30)
    strange["nested"].write_text("[" * 100_000)
    strange["types"].write_text('{"messages": [{"role": {}, "content": []}]}')
    strange["half"].write_text(r'{"messages": [{"role": "user", "content": "\ud83d"}]}')
    assert [entry.name for entry in conversations.find()] == [good]
    for kind, path in strange.items():
        if kind == "dangling":
            assert conversations.get(path.stem) == EMPTY
            continue
        with pytest.raises(PromptError) as refusal:
            conversations.get(path.stem)
        assert len(str(refusal.value)) <= 500
    strange["dangling"].unlink()
    # What is wrong is remembered until the file changes.
    monkeypatch.setattr("baichuan.transcript.read", lambda *_: pytest.fail("read again"))
    assert [entry.name for entry in conversations.find()] == [good]


STRANGE = ("pipe", "directory", "device", "dangling", "sparse", "nested", "types", "half")
