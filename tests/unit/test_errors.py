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
