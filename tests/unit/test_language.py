"""The user's language, and sentences in it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from baichuan.language import VARIABLES, language, speak, translate

LEAVE, ABSENT = "Ctrl+D or /bye leaves", "There is no file {path}. Fetch it."


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LC_ALL": "C.UTF-8", "BAICHUAN_LANG": "zh"}, "zh"),
        ({"LC_ALL": "zh_CN.UTF-8", "BAICHUAN_LANG": "en"}, "en"),
        ({"LC_ALL": "zh_CN.UTF-8", "BAICHUAN_LANG": ""}, "zh"),
    ],
)
def test_the_first_variable_that_is_set_decides(monkeypatch, variables, expected):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_without_variables_the_system_decides(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    # What Windows says.
    monkeypatch.setattr("locale.getlocale", lambda: ("Chinese (Simplified)_China", "936"))
    assert language() == "zh"
    monkeypatch.setattr("locale.getlocale", lambda: (None, None))
    assert language() == "en"


def test_sentences_follow_the_language(monkeypatch):
    assert translate(LEAVE) == LEAVE
    assert translate(ABSENT, path="a{b}") == "There is no file a{b}. Fetch it."
    monkeypatch.setenv("BAICHUAN_LANG", "zh")
    assert translate(LEAVE) == "按 Ctrl+D 或输入 /bye 退出"
    assert translate(ABSENT, path="a{b}") == "没有文件 a{b}。请下载它。"


def test_what_is_in_no_catalogue_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("BAICHUAN_LANG", "zh")
    assert translate("no sentence of ours, {braces}") == "no sentence of ours, {braces}"


def test_each_thread_may_speak_another():
    def says(code):
        speak(code)
        return language(), translate(LEAVE)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        chinese, english = one.submit(says, "zh"), other.submit(says, "en")
        assert chinese.result() == ("zh", "按 Ctrl+D 或输入 /bye 退出")
        assert english.result() == ("en", LEAVE)
    assert language() == "en"
