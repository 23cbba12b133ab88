"""Errors: sentences in the user's language, whatever they pass through."""

import copy
import pickle
import subprocess
import sys

import pytest

from baichuan.errors import (
    BaichuanError,
    CheckpointError,
    ContextLengthError,
    DataError,
    DownloadError,
    NumericalError,
    PromptError,
    QueueFullError,
    StoppedError,
    TokenizerError,
    UsageError,
)

CLASSES = [
    BaichuanError,
    *(UsageError, CheckpointError, TokenizerError, PromptError, DownloadError),
    *(ContextLengthError, NumericalError, QueueFullError, StoppedError),
]
TEMPLATE = "{path} holds no table of settings. Fetch the file again."
ENGLISH = "a{0}.json holds no table of settings. Fetch the file again."
CHINESE = "a{0}.json 的内容不是配置表。请重新下载该文件。"


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("language", "sentence"), [("en", ENGLISH), ("zh", CHINESE)])
def test_sentence_is_in_the_user_s_language(kind, language, sentence, monkeypatch):
    monkeypatch.setenv("BAICHUAN_LANG", language)
    with pytest.raises(kind) as raised:
        raise kind(TEMPLATE, path="a{0}.json")
    assert str(raised.value) == sentence


@pytest.mark.parametrize("kind", CLASSES)
def test_copies_say_the_same(kind, monkeypatch):
    monkeypatch.setenv("BAICHUAN_LANG", "zh")
    error = kind(TEMPLATE, path="a{0}.json")
    monkeypatch.setenv("BAICHUAN_LANG", "en")  # the process that unpickles may speak another
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(copied) is kind
        assert (str(copied), copied.args) == (CHINESE, (CHINESE,))


@pytest.mark.parametrize("kind", CLASSES)
def test_plain_text_is_literal(kind):
    assert str(kind("{path} and {")) == "{path} and {"
    assert str(kind("100 % {}")) == "100 % {}"


def test_facts_may_have_any_name():
    assert str(UsageError("{self} {template}", self="a", template="b")) == "a b"


def test_other_bases():
    for kind, base in ((UsageError, ValueError), (CheckpointError, OSError)):
        error = kind(TEMPLATE, path="a")
        assert isinstance(error, base)
    assert (error.errno, error.filename) == (None, None)


def test_errors_import_nothing_heavy_and_read_the_catalogue_at_the_first_one():
    code = (
        "import sys, baichuan.errors, baichuan.language as said;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules);"
        "assert said._catalogue.cache_info().currsize == 0;"
        "baichuan.errors.UsageError('x');"
        "assert said._catalogue.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", ["x" * 100_000, "嗨" * 501, ["y"] * 9_999, {"k": "v" * 600}])
def test_a_message_has_at_most_500_characters_whatever_a_file_or_client_gave(value):
    message = str(UsageError("bits is {given!r} in {path}; allowed is 8.", given=value, path="p"))
    assert len(message) <= 500
    assert message.startswith("bits is ")
    assert message.endswith(" in p; allowed is 8.")
    assert "…" in message
    many = {f"f{i}": value for i in range(9)}
    assert len(str(UsageError(" ".join(f"{{{name}}}" for name in many), **many))) <= 500


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("half \ud83d", r"half \ud83d"),
        ("file\udcff", r"file\udcff"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("two\nlines, 表", "two\nlines, 表"),
        (2.5, "2.5"),
    ],
)
def test_control_characters_and_surrogates_are_escaped(value, shown):
    assert str(DataError("{value} is wrong.", value=value)) == f"{shown} is wrong."
    assert str(DataError("{value:>9} is wrong.", value=value)).endswith(f"{shown} is wrong.")
