"""What the tests of training share: a small tokenizer and a place for what `datasets` keeps."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("datasets")

import datasets

from baichuan.model.tokenizer import BaichuanTokenizer


@pytest.fixture(scope="session")
def tokenizer(pytestconfig) -> BaichuanTokenizer:
    return BaichuanTokenizer.from_pretrained(pytestconfig.rootpath / "tests" / "data" / "tokenizer")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Keep what transformers tells later trainers by variables to the test that caused it."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
