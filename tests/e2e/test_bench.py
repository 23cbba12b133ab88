"""`baichuan bench`, whole: tables, JSON, picture, random weights, Ctrl+C."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.e2e.test_commands import COMMAND, ENGLISH, run

SMALL = ["--tokens", "6", "--prompt", "8", "--repeats", "2"]


def test_the_demo(tmp_path):
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    done = run("bench", "--precision", "bf16,int4", *SMALL, *files, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for said in (
        "demo model: tokens per second",
        "peak, all told",
        "ALiBi and RoPE",
        "mean over 6 tokens",
        "31.6 %",
    ):
        assert said in done.stdout
    saved = json.loads((tmp_path / "b.json").read_text())
    bf16, int4 = saved["precisions"]
    assert (bf16["precision"], int4["precision"]) == ("bf16", "int4")
    assert bf16["measured"]["weight_bytes"] > int4["measured"]["weight_bytes"]
    assert saved["machine"]["cpu"]
    assert saved["machine"]["threads"] == 1
    assert saved["machine"]["versions"]["torch"]
    for row in saved["precisions"]:
        assert row["measured"]["threads"] == 1
        assert row["measured"]["load_seconds"] > 0
        assert row["decode_tokens_per_second"]["median"] > 0
        assert row["alibi_to_rope_decode"]["median"] > 0
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_random_weights(tmp_path):
    file = tmp_path / "b.json"
    arguments = ["--random", "7b", "--layers", "1", "--precision", "int4", "--no-rope"]
    done = run("bench", *arguments, *SMALL, "--huge-pages", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "Baichuan-7B, random weights, 1 of 32 layers" in done.stdout
    assert "RoPE" not in done.stdout
    (row,) = json.loads(file.read_text())["precisions"]
    assert row["measured"]["load_seconds"] is None
    assert row["measured"]["peak_bytes"] > row["measured"]["weight_bytes"] > 800_000_000


def test_ctrl_c_ends_the_worker(tmp_path):
    process = start("--tokens", "100000", "--precision", "fp32", "--json", str(tmp_path / "b.json"))
    worker = wait_for(lambda: worker_of(process))
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "")
    assert not worker.is_running()
    assert not any(tmp_path.iterdir())


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    file = tmp_path / "b.json"
    process = start("--tokens", "20", "--repeats", "20", "--no-rope", "--json", str(file))
    wait_for(file.exists)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "fp32" in out
    assert "int4" not in out
    assert json.loads(Path(file).read_text())["precisions"][0]["precision"] == "fp32"


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "bench", "--prompt", "8", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=ENGLISH, **pipes)


def worker_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    children = psutil.Process(process.pid).children()
    return next((c for c in children if "baichuan.bench.worker" in c.cmdline()), None)


def wait_for(condition):
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")
