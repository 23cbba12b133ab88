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


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "192.168.0.1"])
def test_whoever_serves_a_network_is_told(host, monkeypatch, capsys):
    pytest.importorskip("streamlit", reason="needs streamlit: .[web]")
    monkeypatch.setattr(
        "baichuan.web.app.run_page", lambda options, host, port, ready: ready("http://here")
    )
    run_web(None, None, host, 0, False, {})
    said = capsys.readouterr().err
    assert "http://here" in said
    warned = f"Whoever reaches {host} may use the model: the page asks for no password." in said
    assert warned == (host in ("0.0.0.0", "::", "192.168.0.1"))
