"""The READMEs' own commands and snippets, run as a reader would, with the demo for the 13B."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from baichuan.checkpoint.load import DEMO
from tests.e2e.page import served, web
from tests.e2e.serving import Server

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "README_zh.md"]
HUB_NAME = "baichuan-inc/Baichuan-13B-Chat"


def blocks(readme: str, language: str) -> list[str]:
    text = (ROOT / readme).read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(command: list[str], given: str = "", where: Path = ROOT) -> str:
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=300, cwd=where
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("readme", READMES)
def test_python(readme):
    (code,) = blocks(readme, "python")
    assert HUB_NAME in code
    out = run([sys.executable, "-W", "error", "-c", code.replace(HUB_NAME, str(DEMO))])
    assert "乔戈里峰" in out


def commands(readme: str) -> list[tuple[str, ...]]:
    lines = [line for block in blocks(readme, "bash") for line in block.splitlines()]
    return [
        tuple(shlex.split(line, comments=True)) for line in lines if line.startswith("baichuan")
    ]


def test_commands(tmp_path):
    english, chinese = map(commands, READMES)
    names = ["chat", "chat", "generate", "info", "quantize", "chat", "serve", "web", "bench"]
    assert [words[1] for words in english] == [words[1] for words in chinese] == names
    for words in dict.fromkeys(english + chinese):  # what both name runs once
        if words[1] == "serve":  # does not end by itself
            with Server(*words[2:]) as server:
                server.wait_until_ready()
            continue
        if words[1] == "web":  # nor does this
            with served(web(*words[2:]), tmp_path) as address:
                assert httpx.get(address).status_code == 200
            continue
        arguments = [str(DEMO) if word == HUB_NAME else word for word in words[1:]]
        out = run(
            [sys.executable, "-m", "baichuan.cli.main", *arguments],
            given="你好\n/bye\n",
            where=tmp_path,
        )
        assert out.strip(), words
