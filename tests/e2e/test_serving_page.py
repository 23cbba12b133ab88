"""docs/serving.md: its examples run against a server, its options are those of --help."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.serving import Server

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        server.wait_until_ready()
        yield server


def said(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("code", blocks("python"), ids=["openai", "langchain"])
def test_python(server, code):
    assert ADDRESS in code
    assert "乔戈里峰" in said([sys.executable, "-c", code.replace(ADDRESS, server.url)])


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_curl(server):
    (command,) = blocks("bash")
    out = said(["bash", "-c", command.replace(ADDRESS, server.url)])
    assert out.endswith("data: [DONE]\n\n")


def test_options():
    _, options = said([sys.executable, "-m", "baichuan.cli.main", "serve", "--help"]).split("\n", 1)
    assert blocks("text") == [f"Usage: baichuan serve [OPTIONS] [MODEL]\n{options}"]


def test_every_figure_is_explained(server):
    shown = re.findall(r"^# TYPE (\w+) (\w+)", server.http.get("/metrics").text, re.MULTILINE)
    told = set(re.findall(r"`(baichuan_\w+)`", PAGE))
    assert told == {name for name, kind in shown if not name.endswith("_created")}
