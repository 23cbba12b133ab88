"""The user's language."""

import pytest

from baichuan.cli.language import local


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "中文"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW"}, "中文"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "C"}, "English"),
        ({"LANG": "de_DE.UTF-8"}, "English"),
    ],
)
def test_language_is_the_locale_s(monkeypatch, variables, text):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local("English", "中文") == text
