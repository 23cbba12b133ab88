"""The commands, each in a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import baichuan
from tests.conftest import tiny_config

VOCABULARY = Path(__file__).parents[1] / "data" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    config = tiny_config(vocab_size=1000, initializer_range=0.2)
    baichuan.BaichuanForCausalLM(config).save_pretrained(directory)
    shutil.copy(VOCABULARY, directory)
    return directory


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baichuan.cli.main", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)


def test_help_imports_no_torch():
    code = "import sys, baichuan.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert "generate" in run("--help").stdout


def test_generate_is_repeatable_and_clean(checkpoint):
    once = run("generate", str(checkpoint), "-p", "hello", "--max-tokens", "8")
    again = run("generate", str(checkpoint), "--max-tokens", "8", given="hello")
    assert once.returncode == 0, once.stderr
    assert once.stdout == again.stdout
    assert once.stdout.strip()


def test_info_counts_parameters(checkpoint):
    out = run("info", str(checkpoint))
    assert "alibi" in out.stdout
    assert "parameters" in out.stdout


@pytest.mark.parametrize("command", ["chat", "generate", "info"])
def test_wrong_path_is_a_sentence(command):
    out = run(command, "/no/such/directory", given="hello")
    assert out.returncode == 2
    assert "neither a directory" in out.stderr
    assert "Traceback" not in out.stderr
