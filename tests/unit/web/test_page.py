"""The page without a browser: Streamlit's own test harness runs the script."""

import json
import re
import time

import pytest

testing = pytest.importorskip("streamlit.testing.v1", reason="needs streamlit: .[web]")


def script(*arguments):
    from baichuan.web.page import show

    show(arguments)


@pytest.fixture
def page(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("BAICHUAN_LANG", "en")
    return testing.AppTest.from_function(script, default_timeout=60)


def buttons(page):
    return {button.label: button for button in page.button}


def texts(page):
    return [[part.value for part in message.markdown] for message in page.chat_message]


def finished(page):
    """Run until no answer is on its way."""
    for _ in range(200):
        page.run()
        if "Stop" not in buttons(page):
            return page
        time.sleep(0.05)
    raise AssertionError(texts(page))


def saved(tmp_path):
    return [json.loads(file.read_text()) for file in tmp_path.rglob("*.json")]


def test_ask_with_a_system_text_and_a_setting(page, tmp_path):
    page.run()
    assert not page.exception
    assert buttons(page)["Clear"].disabled
    defaults = {field.label: field.value for field in page.number_input}
    assert (defaults["Temperature (0 is greedy)"], defaults["Most tokens"]) == (0.0, 256)
    assert defaults["Seed"] is None
    page.text_area[0].set_value("be brief")
    next(f for f in page.number_input if f.label == "Most tokens").set_value(3)
    page.chat_input[0].set_value("hello")
    finished(page)
    assert not page.exception
    assert len(texts(page)) == 2
    captions = [caption.value for caption in page.chat_message[1].caption]
    assert captions[0].startswith("3 tokens · ")
    assert "cut" in captions[1]
    assert saved(tmp_path)[0]["system"] == "be brief"
    assert len(saved(tmp_path)[0]["messages"]) == 2


def test_what_left_the_context_is_said(page, tmp_path):
    messages = [{"role": r, "content": "word " * 300} for r in ("user", "assistant") * 2]
    file = tmp_path / "baichuan" / "conversations" / f"{'0' * 16}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"system": None, "messages": messages}))
    page.query_params["c"] = file.stem
    page.run()
    next(f for f in page.number_input if f.label == "Most tokens").set_value(3)
    page.chat_input[0].set_value("hello")
    finished(page)
    assert not page.exception
    captions = [caption.value for caption in page.caption]
    full = "The context is full: the model did not see the oldest 2 messages."
    assert captions.count(full) == 2  # where it begins, and at the end
    assert re.search(r"context 6\d\d of 1,024 \(6\d%\)", page.chat_message[-1].caption[0].value)


def test_a_damaged_conversation_is_a_sentence_beside_the_others(page, tmp_path):
    good, damaged = ("0" * 16, "f" * 16)
    directory = tmp_path / "baichuan" / "conversations"
    directory.mkdir(parents=True)
    content = {"messages": [{"role": "user", "content": "about herons"}]}
    (directory / f"{good}.json").write_text(json.dumps(content))
    (directory / f"{damaged}.json").write_text("{")
    page.query_params["c"] = damaged
    page.run()
    assert not page.exception
    assert "is no saved conversation" in page.error[0].value.replace("\\", "")
    assert (directory / f"{damaged}.json").read_text() == "{"
    buttons(page)["about herons"].click()
    page.run()
    assert not page.exception
    assert texts(page) == [["about herons"]]
    assert len(page.error) == 0


def test_of_a_long_conversation_the_newest_messages_are_shown(page, tmp_path):
    turns = [{"role": r, "content": str(n)} for n, r in enumerate(("user", "assistant") * 300)]
    file = tmp_path / "baichuan" / "conversations" / f"{'0' * 16}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"messages": turns}))
    page.query_params["c"] = file.stem
    page.run()
    for first in (401, 202, 2, 0):
        assert not page.exception
        assert [text for text, *_ in texts(page)] == [str(n) for n in range(first, 600)]
        earlier = buttons(page).get(f"{first} earlier messages")
        assert (earlier is None) == (first == 0)
        if earlier:
            earlier.click()
            page.run()
    assert {f"copy-{number}" for number in range(600)} <= {button.key for button in page.button}


def test_a_message_that_does_not_fit_is_kept_to_be_shortened(page):
    page.run()
    page.chat_input[0].set_value("word " * 3000)
    page.run()
    assert not page.exception
    assert "may have 1024 tokens together" in page.error[0].value
    field = page.chat_input[0].proto
    assert (field.set_value, field.value) == (True, "word " * 3000)
    assert texts(page) == []


def test_an_error_is_a_sentence_on_the_page(page):
    page.run()
    next(f for f in page.number_input if f.label == "Most tokens").set_value(1_000_000)
    page.chat_input[0].set_value("hello")
    page.run()
    assert not page.exception
    assert "leaves no room" in page.error[0].value
    assert texts(page) == []


def test_the_language_is_chosen_in_the_page(page):
    page.run()
    page.button_group[0].set_value("zh")
    page.run()
    assert "清空" in buttons(page)
    assert page.query_params["lang"] == "zh"


def test_a_model_that_is_not_there_is_a_sentence(monkeypatch, tmp_path):
    page = testing.AppTest.from_function(script, args=(str(tmp_path / "absent"),))
    page.run()
    assert not page.exception
    assert "neither a directory" in page.error[0].value.replace("\\", "")


def test_a_server_that_is_not_there_is_a_sentence():
    page = testing.AppTest.from_function(script, args=("--server", "http://127.0.0.1:9"))
    page.run(timeout=60)
    assert not page.exception
    assert "cannot be reached" in page.error[0].value
