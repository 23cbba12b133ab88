"""The commands, each in a process of its own."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

import baichuan
from baichuan.checkpoint.load import DEMO
from baichuan.cli.main import main
from baichuan.language import VARIABLES

COMMAND = [sys.executable, "-m", "baichuan.cli.main"]
ENGLISH = {**os.environ, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def inside(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process, where torch is imported already."""

    def run_inside(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["baichuan", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(arguments, ended.value.code, *capfd.readouterr())

    return run_inside


def run(*arguments: str, given: str | bytes = "", **environment: str):
    """Run a command to its end; outputs are text."""
    data = given.encode() if isinstance(given, str) else given
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        timeout=300,
        env={**ENGLISH, **environment},
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def test_help_imports_nothing_heavy():
    code = "import sys, baichuan.cli.main; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    heavy = {"torch", "transformers", "numpy", "huggingface_hub", "prompt_toolkit", "sentencepiece"}
    assert not heavy.intersection(imported.stdout.split())
    for arguments in (["--help"], ["-h"], ["chat", "--help"], ["generate", "--help"]):
        assert "Usage" in run(*arguments).stdout


@pytest.mark.parametrize(
    ("variables", "help_text", "error"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "与模型对话", "baichuan: --raw 不使用对话格式"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "Talk to a model", "baichuan: --raw has no chat"),
        ({"LC_ALL": "C", "BAICHUAN_LANG": "zh"}, "与模型对话", "baichuan: --raw 不使用对话格式"),
    ],
)
def test_help_and_errors_are_in_the_user_s_language(variables, help_text, error):
    free = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    environment = {**free, "PYTHONUTF8": "1", **variables}

    def told(*arguments: str) -> tuple[str, str]:
        options = {"capture_output": True, "text": True, "encoding": "utf-8", "env": environment}
        done = subprocess.run([*COMMAND, *arguments], timeout=300, **options)
        return done.stdout, done.stderr

    assert help_text in told("--help")[0]
    assert help_text in told("chat", "--help")[0]
    assert told("generate", "--raw", "--system", "x")[1].startswith(error)


def test_version():
    assert run("--version").stdout == f"baichuan {baichuan.__version__}\n"


def test_generate_is_repeatable_and_clean(checkpoint, inside):
    once = run("generate", str(checkpoint), "-p", "hello", "--max-tokens", "8")
    again = inside("generate", str(checkpoint), "--max-tokens", "8", given=b"\xef\xbb\xbfhello")
    assert once.returncode == 0, once.stderr
    assert once.stdout == again.stdout
    assert once.stdout.strip()


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_guesses_change_no_answer(inside, raw):
    arguments = [
        "generate",
        "-p",
        "世界上第二高的山峰是哪座",
        "--bits",
        "8",
        "--max-tokens",
        "20",
        *raw,
    ]
    plain = inside(*arguments, "--no-speculate").stdout
    assert plain.strip()
    for options in ([], ["--speculate"], ["--draft", str(DEMO)]):
        assert inside(*arguments, *options).stdout == plain
    wrong = inside(*arguments, "--no-speculate", "--draft", str(DEMO))
    assert wrong.returncode == 2
    assert "leave one of them out" in wrong.stderr


def test_a_raw_prompt_is_continued_with_the_space_between(inside):
    arguments = ["generate", "--raw", "-p", "The capital of France is", "--max-tokens", "8"]
    assert inside(*arguments).stdout == " Paris.\n"
    assert inside(*arguments, "--stop", " P").stdout == "\n"
    assert inside("generate", "-p", "What is the capital of France?").stdout[0] == "T"


def test_generate_takes_every_sampling_option(checkpoint, inside):
    options = "--temperature 1 --top-p 0.9 --top-k 50 --repetition-penalty 1.2 --seed 3"
    arguments = ["generate", str(checkpoint), "-p", "hello", "--max-tokens", "12"]
    arguments += options.split(" ")
    free = inside(*arguments)
    assert free.returncode == 0, free.stderr
    assert free.stdout == inside(*arguments, "--system", "").stdout
    assert free.stdout != inside(*arguments, "--system", "be brief").stdout
    assert free.stdout != inside(*arguments, "--raw").stdout
    assert free.stdout != inside(*arguments, "--seed", "4").stdout
    middle = free.stdout[len(free.stdout) // 2]
    stopped = inside(*arguments, "--stop", "never said", "--stop", middle)
    assert stopped.stdout == free.stdout[: free.stdout.index(middle)] + "\n"


@pytest.mark.parametrize("options", [[], ["--raw"], ["--max-tokens", "400"], ["--bits", "8"]])
def test_a_prompt_that_is_too_long_is_refused(options, inside):
    """And one that fits is answered, if need be in fewer tokens."""
    words = b"word " * (700 if "400" in options else 3000)
    out = inside("generate", *options, given=words)
    assert (out.returncode, out.stdout) == (2, "")
    alone = "" if "400" in options else " alone"
    assert f"may have 1024 tokens together here, but the prompt{alone} has" in out.stderr
    fitting = inside("generate", *options, given=b"word " * 30)
    assert fitting.returncode == 0, fitting.stderr
    assert fitting.stdout.strip()


def test_a_model_is_given_in_its_place_or_by_name(checkpoint, inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # as in a clone of the repository
    text = tmp_path / "text.txt"
    text.write_text("hello " * 50)
    own = str(checkpoint)
    for one, *others in (
        (["generate", own], ["generate", "-m", own], ["generate", own, f"--model={own}"]),
        (["generate"], ["generate", "demo"], ["generate", "-m", "demo"]),
    ):
        asked = ["-p", "你好", "--max-tokens", "6"]
        expected = inside(*one, *asked)
        assert expected.returncode == 0, expected.stderr
        for other in others:
            assert inside(*other, *asked).stdout == expected.stdout
    perplexity = [
        inside("eval", "perplexity", *given)
        for given in (["-m", own, str(text)], [own, str(text)], [str(text), "--model", own])
    ]
    assert perplexity[0].returncode == 0, perplexity[0].stderr
    assert len({run.stdout for run in perplexity}) == 1
    plans = [
        inside("train", *given, "--plan", "--output_dir", str(tmp_path / "out"))
        for given in (["-m", own], [own], ["--model_name_or_path", own], [f"--model={own}"])
    ]
    assert plans[0].returncode == 0, plans[0].stderr
    assert len({run.stdout for run in plans}) == 1
    demo = inside("train", "demo", "--plan", "--output_dir", str(tmp_path / "out"))
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout != plans[0].stdout


@pytest.mark.parametrize(
    "command", [["info"], ["generate", "-p", "x"], ["bench"], ["eval", "mmlu"]]
)
def test_two_models_are_one_too_many(command, inside):
    out = inside(*command, "demo", "-m", "some/other")
    assert out.returncode == 2
    assert "Two models were given, demo and -m some/other" in out.stderr


@pytest.mark.parametrize("question", ["Who are you?", "你好", "What is 1/2 of 3?"])
def test_a_question_without_p_is_told_where_it_goes(question, inside):
    out = inside("generate", question, given=b"never read")
    assert (out.returncode, out.stdout) == (2, "")
    assert "baichuan generate -p " in out.stderr
    assert question in out.stderr


@pytest.mark.parametrize(
    "command", [["chat"], ["info"], ["quantize", "TARGET"], ["eval", "perplexity", "TEXT"]]
)
def test_an_adapter_s_directory_is_no_model(command, inside, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "text.txt").write_text("hello")
    places = {"TARGET": str(tmp_path / "target"), "TEXT": str(tmp_path / "text.txt")}
    words = [places.get(word, word) for word in command]
    first = 2 if command[0] == "eval" else 1
    out = inside(*words[:first], str(tmp_path / "adapter"), *words[first:], given=b"hello")
    assert out.returncode == 2
    assert f"Give it with --adapter {tmp_path / 'adapter'}" in out.stderr


def test_demo_answers_without_noise():
    out = run("generate", "-p", "你好", "--max-tokens", "8")
    assert out.returncode == 0
    assert out.stdout.strip()
    assert out.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--top-p", "7"], "top_p is 7.0; allowed is above 0 and at most 1"),
        (["--top-p", "x"], "--top-p"),
        (["--top-p"], "requires an argument"),
        (["--seed", "-1"], "--seed"),
        (["--max-tokens", "1000000"], "no room"),
        (["--stop", ""], "stop"),
        (["--device", "abacus"], "this machine has cpu"),
        (["--dtype", "float7"], "float32, bfloat16, float16"),
        (["--raw", "--system", "x"], "--raw"),
        (["--no-such-option"], "--no-such-option"),
        (["-p", "  "], "empty"),
    ],
)
def test_wrong_options_are_sentences(checkpoint, arguments, sentence, inside):
    out = inside("generate", str(checkpoint), "-p", "hello", *arguments)
    assert out.returncode == 2
    assert sentence in " ".join(out.stderr.split())
    assert "Traceback" not in out.stderr
    assert out.stdout == ""


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_input_that_is_no_utf8_is_a_sentence(command, inside):
    out = inside(command, given=b"\xff\xfe hello")
    assert out.returncode == 2
    assert "not UTF-8" in out.stderr
    assert "Traceback" not in out.stderr


def test_output_that_cannot_be_encoded_is_no_failure(checkpoint):
    out = run(
        "generate", str(checkpoint), "-p", "你好", "--max-tokens", "40", PYTHONIOENCODING="ascii"
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.isascii()


@pytest.mark.parametrize("command", [["generate", "-p", "hello"], ["chat"]])
def test_reader_that_goes_away_is_no_traceback(checkpoint, command):
    arguments = [*COMMAND, command[0], str(checkpoint), *command[1:]]
    with subprocess.Popen(
        arguments + (["--max-tokens", "100000"] if command[0] == "generate" else []),
        env=ENGLISH,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"/set max_tokens 100000\nhello\n" if command == ["chat"] else b"")
        process.stdin.close()
        assert len(process.stdout.read(5)) == 5
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert process.returncode != 0


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_ends_a_pipe_with_130(checkpoint, command):
    limit = ["--max-tokens", "100000"] if command == "generate" else []
    with subprocess.Popen(
        [*COMMAND, command, str(checkpoint), *limit],
        env=ENGLISH,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"hello\n" if command == "generate" else b"/set max_tokens 99999\nhi\n")
        process.stdin.close()
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        errors = process.stderr.read().decode()
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_chat_takes_lines_from_a_pipe(checkpoint, tmp_path):
    file = tmp_path / "talk.json"
    lines = f'/set max_tokens 5\nhello\n"""two\nlines"""\n/save {file}\nexit\nnever sent\n'
    out = run("chat", str(checkpoint), given=lines)
    assert out.returncode == 0, out.stderr
    messages = json.loads(file.read_text("utf-8"))["messages"]
    assert [m["content"] for m in messages[::2]] == ["hello", "two\nlines"]
    assert out.stdout == "".join(m["content"] + "\n" for m in messages[1::2])
    assert "answer 5 tokens" in out.stderr


def test_chat_from_a_pipe_ends_at_the_first_error(checkpoint, inside):
    out = inside("chat", str(checkpoint), given=b"/set top_k many\nnever sent\n")
    assert (out.returncode, out.stdout) == (2, "")
    assert "whole number" in out.stderr


def test_info_tells_machine_and_model(checkpoint, inside, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = inside("info", str(checkpoint))
    assert out.returncode == 0, out.stderr
    facts = {
        cells[0].strip(): cells[1].strip()
        for cells in (line.strip("│").split("│") for line in out.stdout.splitlines())
        if len(cells) == 2
    }
    assert facts["baichuan"] == baichuan.__version__
    model = baichuan.BaichuanForCausalLM.from_pretrained(checkpoint)
    assert facts["parameters"] == f"{model.num_parameters():,}"
    assert facts["dtype"] == "float32"
    assert facts["positions"] == "alibi"
    assert facts["context"] == "1,000,000 tokens"
    assert facts["weight files"].startswith("1, ")
    assert {"torch", "device", "memory", "threads", "cpu"} <= facts.keys()


@pytest.mark.parametrize("command", ["chat", "generate", "info"])
def test_wrong_path_is_a_sentence(command, inside):
    out = inside(command, "/no/such/directory", given=b"hello")
    assert out.returncode == 2
    assert "neither a directory" in out.stderr
    assert "Traceback" not in out.stderr
