"""Trainings as processes: killed and gone on with, and shared by several processes."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CreatesFile

pytest.importorskip("datasets")

from baichuan.checkpoint.load import DEMO

ROOT = Path(__file__).parents[2]
ONE = [sys.executable, "-m", "baichuan.cli.train"]
TWO = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc_per_node", "2", "-m", "baichuan.cli.train"),
]
DEEPSPEED = ["deepspeed", "--num_gpus=2", "--module", "baichuan.cli.train"]
ACCELERATE = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"]
#: What starts two processes, with which flags, and what their checkpoints alone hold.
WAYS = {
    "ddp": (TWO, [], "optimizer.pt"),
    "accelerate": ([*ACCELERATE, "-m", "baichuan.cli.train"], [], "optimizer.pt"),
    "fsdp": (TWO, ["--fsdp"], "optimizer.bin"),
    "zero2": (TWO, ["--deepspeed", str(ROOT / "deepspeed.json")], "global_step3"),
    "zero3": (DEEPSPEED, [], "global_step3"),
}
#: DeepSpeed compiles its communication at first use, which takes a minute or two.
LIMIT = 400


@pytest.fixture(scope="module")
def flags_of_all(tmp_path_factory):
    rows = tmp_path_factory.mktemp("data") / "rows.json"
    table = [
        {"instruction": f"How much is {i} and {i}?", "input": "", "output": f"It is {2 * i}. " * i}
        for i in range(1, 13)
    ]
    rows.write_text(json.dumps(table))
    return [
        *("--model_name_or_path", str(DEMO), "--dataset", str(rows), "--learning_rate", "0.001"),
        *("--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no"),
    ]


@pytest.fixture
def flags(flags_of_all):
    return [*flags_of_all]


@pytest.fixture(scope="module")
def alone(flags_of_all, tmp_path_factory):
    """Train in one process, once for each method; give the flags, the losses and the result."""
    done = {}

    def train_once(method):
        if method not in done:
            where = tmp_path_factory.mktemp("alone")
            flags = [*flags_of_all, "--finetuning_type", method, "--label_smoothing_factor", "0.1"]
            flags += ["--eval_dataset", flags[3], "--eval_strategy", "epoch"]
            # The last batch of each of two processes is no whole one.
            flags += ["--per_device_eval_batch_size", "5"]
            batch = ["--per_device_train_batch_size", "4"]
            done[method] = flags, train(ONE, [*flags, *batch], where / "out", where), where / "out"
        return done[method]

    return train_once


def environment(tmp_path):
    # The interpreter's own ninja before the system's: of another version, it builds all anew.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }


def train(launcher, flags, out, tmp_path):
    command = [*launcher, *flags, "--output_dir", str(out)]
    done = subprocess.run(
        command, env=environment(tmp_path), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(out)


def losses(out, name="loss"):
    state = json.loads((out / "trainer_state.json").read_text())
    return [record[name] for record in state["log_history"] if name in record]


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_weights(flags, tmp_path):
    flags += ["--finetuning_type", "lora", "--lora_dropout", "0.1", "--max_steps", "8"]
    flags += ["--save_strategy", "steps", "--save_steps", "1", "--overwrite_cache"]
    undisturbed = train(ONE, flags, tmp_path / "whole", tmp_path)
    out = tmp_path / "killed"
    for step in (2, 4, 6):
        command = [*ONE, *flags, "--output_dir", str(out)]
        process = subprocess.Popen(
            command, env=environment(tmp_path), stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + LIMIT
        while not (out / f"checkpoint-{step}").exists():
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert train(ONE, flags, out, tmp_path) == undisturbed
    ours, theirs = (
        load_file(where / "adapter_model.safetensors") for where in (out, tmp_path / "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "method"), [*((way, "full") for way in WAYS), ("fsdp", "lora")])
def test_two_processes_lose_what_one_loses(alone, tmp_path, way, method):
    launcher, more, mark = WAYS[way]
    if way.startswith("zero"):
        pytest.importorskip("deepspeed")
    if way == "zero3":
        more = ["--deepspeed", str(zero3(tmp_path))]
    flags, lost, one = alone(method)
    shared = [*flags, *more, "--per_device_train_batch_size", "2", "--save_strategy", "steps"]
    two = tmp_path / "two"
    assert train(launcher, shared, two, tmp_path) == pytest.approx(lost, abs=1e-3)
    evaluated = [losses(path, "eval_loss") for path in (one, two)]
    assert len(evaluated[0]) == 1
    assert evaluated[1] == pytest.approx(evaluated[0], abs=1e-3)
    assert (two / "checkpoint-3" / mark).exists()
    file = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}[method]
    whole, spread = (load_file(path / file) for path in (one, two))
    for key, tensor in whole.items():
        torch.testing.assert_close(spread[key], tensor, atol=2e-3, rtol=0)


def zero3(tmp_path):
    """Write the recipe's file without the offloaded Adam, which would be compiled for minutes."""
    content = json.loads((ROOT / "recipes" / "zero3_offload.json").read_text())
    del content["zero_optimization"]["offload_optimizer"]
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "files"), [("zero2", "global_step2/*.pt"), ("sharded", "*/.metadata")]
)
def test_code_in_what_an_engine_saved_does_not_run(flags, tmp_path, way, files):
    sharded = tmp_path / "sharded.json"
    sharded.write_text('{"state_dict_type": "SHARDED_STATE_DICT"}')
    more = {"sharded": ["--fsdp", "--fsdp_config", str(sharded)], "zero2": WAYS["zero2"][1]}[way]
    if way == "zero2":
        pytest.importorskip("deepspeed")
    flags += ["--finetuning_type", "full", *more, "--save_strategy", "steps", "--save_steps", "2"]
    out, ran = tmp_path / "out", tmp_path / "ran"
    whole = train(TWO, flags, out, tmp_path)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "ended": False}))
    shutil.rmtree(out / "checkpoint-3")
    saved = {path: path.read_bytes() for path in (out / "checkpoint-2").glob(files)}
    assert len(saved) >= 2
    for path in saved:
        if way == "zero2":
            torch.save({"module": CreatesFile(ran)}, path)
        else:
            path.write_bytes(pickle.dumps(CreatesFile(ran)))
    command = [*TWO, *flags, "--output_dir", str(out)]
    done = subprocess.run(
        command, env=environment(tmp_path), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode != 0 and "asks to run" in done.stderr
    assert not ran.exists()
    for path, content in saved.items():
        path.write_bytes(content)
    assert train(TWO, flags, out, tmp_path) == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_a_run_of_two_processes_is_not_resumed_by_one(flags, tmp_path):
    saving = [*flags, "--save_strategy", "steps", "--save_steps", "2"]
    out = tmp_path / "out"
    train(TWO, [*saving, "--save_only_model", "true"], out, tmp_path)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "ended": False}))
    for launcher, said in (
        (ONE, "other settings (processes: 2 → 1)"),
        (TWO, "checkpoint-3 has weights, but no optimizer.pt, scheduler.pt"),
    ):
        command = [*launcher, *saving, "--save_only_model", "true", "--output_dir", str(out)]
        done = subprocess.run(
            command, env=environment(tmp_path), capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode != 0
        assert said in done.stderr and "Traceback" not in done.stderr.partition("baichuan:")[0]


@pytest.mark.slow
def test_two_machines_lose_what_one_process_loses(alone, tmp_path):
    """Two agents, each with a process, which find each other by torchrun's rendezvous."""
    flags, lost, _ = alone("full")
    port = free_port()
    agent = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"),
        *("-m", "baichuan.cli.train", *flags, "--per_device_train_batch_size", "2"),
        *("--output_dir", str(tmp_path / "two")),
    ]
    said = [tmp_path / f"machine{number}.log" for number in range(2)]
    agents = []
    for log in said:
        with log.open("w") as file:
            agents.append(subprocess.Popen(agent, env=environment(tmp_path), stderr=file))
    ends = [process.wait(LIMIT) for process in agents]
    assert ends == [0, 0], "\n".join(log.read_text()[-2000:] for log in said)
    assert losses(tmp_path / "two") == pytest.approx(lost, abs=1e-3)


def free_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return bound.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tongue", "sentence"),
    [
        ("en", "is whole, and the same command goes on from it."),
        ("zh", "再次执行同一命令即可从它继续。"),
    ],
    ids=["en", "zh"],
)
def test_control_c_says_what_is_saved(flags, tmp_path, tongue, sentence):
    out = tmp_path / "out"
    flags += ["--max_steps", "10000", "--save_strategy", "steps", "--save_steps", "2"]
    command = [*ONE, *flags, "--output_dir", str(out)]
    told = {**environment(tmp_path), "BAICHUAN_LANG": tongue}
    process = subprocess.Popen(command, env=told, stderr=subprocess.PIPE)
    while not (out / "checkpoint-2").exists():
        assert process.poll() is None, "ended before it was stopped"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, heard = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    last = heard.decode().splitlines()[-1]
    assert f"{out}/checkpoint-" in last
    assert last.endswith(sentence)
