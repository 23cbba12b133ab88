"""`baichuan eval`, whole: table, files, kill -9, two processes, a server, comparison, texts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from baichuan.checkpoint.load import DEMO
from tests.e2e.serving import Server
from tests.e2e.test_commands import COMMAND, ENGLISH, inside  # noqa: F401  (a fixture)
from tests.unit.evaluate.conftest import make_data  # noqa: F401  (a fixture)

SUBJECTS = ["agronomy", "arts", "virology"]


@pytest.fixture
def asked(make_data):  # noqa: F811
    folder = make_data("cmmlu", SUBJECTS, questions=8)
    return ["cmmlu", "--data", str(folder), "--subjects", ",".join(SUBJECTS)]


@pytest.fixture
def evaluate(inside):  # noqa: F811
    """Run `baichuan eval` in this process, where torch is imported already."""
    return lambda *arguments: inside("eval", *map(str, arguments))


def test_the_table_and_the_files(evaluate, asked, tmp_path):
    done = evaluate(*asked, "--out", tmp_path / "r.json")
    few = "Not the official number of rows in test: agronomy 8/169, arts 8/160, virology 8/169."
    assert done.returncode == 0
    assert few in " ".join(done.stderr.split())
    assert few in " ".join(done.stdout.split())
    for said in ("CMMLU, test", "Model 5-shot", "STEM", "Humanities", "Others", "Average"):
        assert said in done.stdout
    assert "24 questions; scheme official, macro average; letters by piece" in " ".join(
        done.stdout.split()
    )
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    again = evaluate(*asked, "--out", tmp_path / "r.json")  # it is there: nothing is computed
    assert again.stdout == done.stdout
    other = evaluate(*asked, "--out", tmp_path / "r.json", "--shots", "2")
    assert other.returncode == 2
    assert "other settings (shots: 5 ≠ 2" in other.stderr


def test_kill_minus_9_and_resume(evaluate, asked, tmp_path):
    """Killed again and again, it comes to the end, and to the same bytes."""
    small = [*asked, "--batch-tokens", "40"]
    assert evaluate(*small, "--out", tmp_path / "whole.json").returncode == 0
    target, journal = tmp_path / "r.json", tmp_path / "r.json.partial"
    command = [*COMMAND, "eval", *small, "--out", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENGLISH)
    while process.poll() is None and (not journal.exists() or journal.stat().st_size < 2500):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert journal.exists()
    assert not target.exists()
    assert evaluate(*small, "--out", target).returncode == 0
    assert target.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not journal.exists()


def test_two_processes_write_the_same_file(evaluate, asked, tmp_path):
    assert evaluate(*asked, "--out", tmp_path / "one.json").returncode == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    module = ["--standalone", "-m", "baichuan.cli.main", "eval"]
    command = [*launcher, *module, *asked, "--out", str(tmp_path / "two.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENGLISH, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CMMLU, test") == 1
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert not list(tmp_path.glob("two.json.*"))


def predictions(path):
    return [
        (q["subject"], q["number"], q["prediction"])
        for q in json.loads(path.read_text())["questions"]
    ]


def test_a_server_and_transformers_predict_the_same(evaluate, asked, tmp_path):
    """All of one letter token: a server's own tokenizer cannot be told another."""
    files = {name: tmp_path / f"{name}.json" for name in ("own", "transformers", "server")}
    assert evaluate(*asked, "--out", files["own"]).returncode == 0
    done = evaluate(*asked, "--out", files["transformers"], "--transformers", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert predictions(files["transformers"]) == predictions(files["own"])
    with Server() as server:
        server.wait_until_ready()
        address = f"{server.url}/v1"
        done = evaluate(*asked, "--out", files["server"], "--server", address)
    assert done.returncode == 0, done.stderr
    scores = [q["scores"] for q in json.loads(files["server"].read_text())["questions"]]
    assert len(scores) == 24
    assert all(score <= 0 for four in scores for score in four)
    assert f"computed by {address}" in " ".join(done.stdout.split())
    gone = evaluate(*asked, "--out", tmp_path / "gone.json", "--server", address)
    assert gone.returncode == 2
    assert f"The server at {address} did not answer" in gone.stderr


def test_compare(evaluate, asked, tmp_path):
    files = [tmp_path / "fp.json", tmp_path / "int4.json"]
    assert evaluate(*asked, "--out", files[0]).returncode == 0
    assert evaluate(*asked, "--out", files[1], "--bits", "4").returncode == 0
    extra = ["--json", tmp_path / "c.json", "--plot", tmp_path / "c.png"]
    done = evaluate("compare", *files, *extra)
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("demo int4", "demo int4 − demo:", "McNemar p ="):
        assert said in done.stdout
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "c.json").read_text())["cmmlu"]
    (pair,) = saved["differences_from_the_first"]
    right = [
        [q["prediction"] == q["answer"] for q in json.loads(file.read_text())["questions"]]
        for file in files
    ]
    assert pair["gained"] - pair["lost"] == sum(right[1]) - sum(right[0])
    assert pair["total"] == 24
    fewer = evaluate(*asked, "--limit", "3", "--out", tmp_path / "few.json")
    assert fewer.returncode == 0
    done = evaluate("compare", files[0], tmp_path / "few.json")
    assert done.returncode == 2
    assert "are of different questions of CMMLU" in done.stderr


def test_cevals_submission_lies_beside_the_result(evaluate, make_data, tmp_path):  # noqa: F811
    folder = make_data("ceval", ["law"], split="test", questions=3)
    asked = ["ceval", "--data", folder, "--subjects", "law", "--split", "test"]
    target = tmp_path / "ceval-test-demo.json"
    done = evaluate(*asked, "--out", target)
    assert done.returncode == 0, done.stderr
    submission = json.loads((tmp_path / "submission-ceval-test-demo.json").read_text())
    predicted = {q["number"]: q["prediction"] for q in json.loads(target.read_text())["questions"]}
    assert submission == {"law": predicted}
    assert list(tmp_path.glob("ceval-*.json")) == [target]  # as the documents compare them


def test_perplexity_and_kl(evaluate, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("你好，很高兴认识你。今天天气很好，我们一起去公园吧。\n" * 4, "utf-8")
    done = evaluate("perplexity", text, "--json", tmp_path / "p.json")
    assert (done.returncode, done.stderr) == (0, "")
    saved = json.loads((tmp_path / "p.json").read_text())
    assert saved["window"] == 1024
    assert f"{saved['perplexity']:.3f}" in done.stdout
    distance = ["kl", DEMO, DEMO, text, "--json", tmp_path / "k.json"]
    done = evaluate(*distance, "--bits", "4")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "k.json").read_text())
    assert 0 < found["kl"] < 0.2
    assert found["scores"]["original"]["nats"] == pytest.approx(saved["nats"], rel=0.01)  # bfloat16
    assert "0.00000 nats" in evaluate("kl", DEMO, DEMO, text).stdout
    text.write_bytes("\ufeff".encode() + text.read_bytes())  # is no part of the text
    for command, file, before in (
        (["perplexity", text], "p.json", saved),
        ([*distance[:4], "--bits", "4"], "k.json", found),
    ):
        assert evaluate(*command, "--json", tmp_path / file).returncode == 0
        after = json.loads((tmp_path / file).read_text())
        assert after.pop("digests") != before.pop("digests")
        assert after == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cmmlu", "--scheme", "baichuan"], "for cmmlu there is official"),
        (["ceval", "--data", "nowhere"], "no folder and no file"),
        (["ceval", "--letter", "middle"], "allowed is one of first, last, piece, spaced"),
        (["mmlu", "--server", "http://x/v1", "--bits", "4"], "A server has a model of its own"),
        (["mmlu", "--plot", "x.gif"], "should end in one of"),
        (["perplexity", "nowhere.txt"], "cannot be read"),
        (["compare", "nowhere.json"], "is no result of"),
    ],
)
def test_mistakes_are_sentences(evaluate, arguments, said):
    done = evaluate(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_chinese(evaluate, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("BAICHUAN_LANG", "zh")
    done = evaluate(*asked, "--out", tmp_path / "r.json")
    assert "95 % 置信区间" in done.stdout
    assert "24 题；方案 official" in done.stdout.replace("\n", "")
