"""`baichuan web` before anything is served: what cannot be is a sentence."""

import sys

import pytest

from baichuan.cli.web import run_web
from baichuan.errors import CheckpointError, UsageError


def web(model=None, server=None):
    run_web(model, server, "127.0.0.1", 0, False, {})


def test_a_missing_extra_names_its_own_pip_line(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("baichuan.web.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "streamlit", None)
    with pytest.raises(UsageError, match=r"streamlit.*pip install 'baichuan-lm\[web\]'"):
        web()


def test_a_model_and_a_server_are_one_too_many():
    with pytest.raises(UsageError, match="--server were both given"):
        web("some/model", "http://127.0.0.1:8000")


def test_a_wrong_name_is_said_before_anything_is_served(tmp_path):
    with pytest.raises(CheckpointError, match="neither a directory"):
        web(str(tmp_path / "absent"))
