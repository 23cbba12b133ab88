"""typer's help, errors and completion, in processes of their own as a shell starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from baichuan.hub import DEMO

COMMAND = [sys.executable, "-m", "baichuan.cli.main"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100", **environment}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, encoding="utf-8", timeout=300, env=variables
    )


@pytest.mark.parametrize(
    ("arguments", "english", "chinese"),
    [
        ("frob", "No such command 'frob'.", "没有命令 'frob'。"),
        ("inf", "Did you mean 'info'?", "没有命令 'inf'。是不是 'info'？"),
        ("generate --nope", "No such option: --nope", "没有选项 --nope"),
        ("generate --top-p x", "Invalid value for '--top-p'", "'--top-p' 的值无效：应为数字"),
        ("generate --top-k x", "Invalid value for '--top-k'", "'--top-k' 的值无效：应为整数"),
        ("serve --port 70000", "or equal to 65535", "'--port' 的值无效：应小于或等于 65535"),
        ("generate --seed -1", "or equal to 0", "'--seed' 的值无效：应大于或等于 0"),
        ("chat --system", "requires an argument", "选项 '--system' 需要一个值。"),
        ("web --browser=1", "does not take a value", "选项 '--browser' 不带值。"),
        ("quantize", "Missing argument 'source'.", "缺少参数 'source'。"),
        ("quantize -m x", "Missing argument 'target'.", "缺少参数 'target'。"),
        ("quantize -m", "requires an argument", "选项 '-m' 需要一个值。"),
        ("convert a b -m c", "unexpected extra argument", "多余的参数（b）"),
        ("info a b", "unexpected extra argument", "多余的参数（b）"),
    ],
)
def test_errors_are_in_the_user_s_language(arguments, english, chinese):
    told = run(*arguments.split(), BAICHUAN_LANG="en")
    assert (told.returncode, told.stdout) == (2, "")
    assert english in told.stderr
    said = run(*arguments.split(), BAICHUAN_LANG="zh")
    assert (said.returncode, said.stdout) == (2, "")
    assert f"错误：{chinese}" in said.stderr
    assert not any(word in said.stderr for word in ("Error", "Usage", "Try"))


@pytest.mark.parametrize(
    "arguments",
    [
        "quantize -m {demo} {made}",
        "quantize {made} --bits 8 --model {demo}",
        "quantize demo {made}",
        "convert --model={demo} {made}.gguf",
        "convert {made}.gguf -m {demo}",
        "eval kl -m {demo} demo {text}",
        "eval kl demo {text} -m {demo} --json {made}.json",
    ],
)
def test_a_model_that_is_required_may_be_named_by_an_option(arguments, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 20)
    places = {"demo": DEMO, "made": tmp_path / "made", "text": text}
    done = run(*arguments.format(**places).split(), BAICHUAN_LANG="en")
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    made = {path.name for path in tmp_path.iterdir()} - {"text.txt"}
    assert made or "KL from the original: 0.00000" in done.stdout


@pytest.mark.parametrize("command", [[], ["serve"], ["eval"], ["eval", "kl"]])
def test_help_is_in_the_user_s_language(command):
    shown = run(*command, "--help", BAICHUAN_LANG="zh").stdout
    assert shown.startswith("用法：")
    english = ("Usage", "Options:", "Commands:", "Arguments:", "default", "required", "Show this")
    assert not any(word in shown for word in english)
    assert shown == run("help", *command, BAICHUAN_LANG="zh").stdout


def test_commands_are_listed_by_name_below_which_stand_two_examples():
    lines = run("--help", BAICHUAN_LANG="en").stdout.splitlines()
    start = lines.index("Commands:") + 1
    names = [line.split()[0] for line in lines[start : lines.index("", start)]]
    assert names == sorted(names)
    assert {"chat", "eval", "help", "web"} <= {*names}
    assert [line.split("  ")[2] for line in lines if line.startswith("    baichuan ")] == [
        "baichuan chat",
        "baichuan generate -p 'Who are you?'",
    ]
    assert "Usage: baichuan train" in run("help", "train", BAICHUAN_LANG="en").stdout


def completed(words: str, shell: str) -> list[str]:
    """Ask as the script does that `--show-completion` prints for this shell."""
    asked = {"_BAICHUAN_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
    asked |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    program = Path(sys.executable).with_name("baichuan")
    environment = {**os.environ, **asked, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("baichuan qua", "quantize"),
        ("baichuan eval perp", "perplexity"),
        ("baichuan generate --max", "--max-tokens"),
        ("baichuan train --lora_t", "--lora_target"),
        ("baichuan train --learning_r", "--learning_rate"),
    ],
)
def test_completion(shell, words, answer):
    assert answer in " ".join(completed(words, shell))


def test_bash_completes_by_the_script_that_the_command_prints():
    script = """
        eval "$(baichuan --show-completion)"
        COMP_WORDS=(baichuan me) COMP_CWORD=1
        _baichuan_completion baichuan
        echo "found ${COMPREPLY[*]}"
        complete -p baichuan
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert "found merge" in done.stdout, done.stderr
    assert "-F _baichuan_completion baichuan" in done.stdout


def test_completion_imports_nothing_heavy():
    code = "import sys, baichuan.cli.train as t; t.flag_names(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "numpy"}.intersection(done.stdout.split())


def test_info_as_json():
    facts = json.loads(run("info", "--json", BAICHUAN_LANG="zh").stdout)
    assert facts["model"]["parameters"] == 9_440_640
    assert facts["model"]["quantized"] is None
    assert facts["model"]["positions"] == "alibi"
    assert facts["installation"]["memory"]["total"] >= facts["installation"]["memory"]["available"]
    assert (
        facts["installation"]["kernels"]["chosen"] in facts["installation"]["kernels"]["available"]
    )
