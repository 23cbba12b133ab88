"""Trainings as processes: killed and gone on with, and shared by several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("datasets")

from baichuan.checkpoint.load import DEMO

ROOT = Path(__file__).parents[2]
ONE = [sys.executable, "-m", "baichuan.cli.train"]
TWO = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc_per_node", "2", "-m", "baichuan.cli.train"),
]
WAYS = {
    "ddp": [],
    "fsdp": ["--fsdp"],
    "zero2": ["--deepspeed", str(ROOT / "deepspeed.json")],
}
#: DeepSpeed compiles its communication at first use, which takes a minute or two.
LIMIT = 400


@pytest.fixture
def flags(tmp_path):
    rows = tmp_path / "rows.json"
    table = [
        {"instruction": f"How much is {i} and {i}?", "input": "", "output": f"It is {2 * i}. " * i}
        for i in range(1, 13)
    ]
    rows.write_text(json.dumps(table))
    return [
        *("--model_name_or_path", str(DEMO), "--dataset", str(rows), "--learning_rate", "0.001"),
        *("--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no"),
    ]


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
    state = json.loads((out / "trainer_state.json").read_text())
    return [record["loss"] for record in state["log_history"] if "loss" in record]


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
@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2"])
def test_two_processes_lose_what_one_loses(flags, tmp_path, way):
    flags += ["--finetuning_type", "full"]
    if way == "zero2":
        pytest.importorskip("deepspeed")
    alone = train(ONE, [*flags, "--per_device_train_batch_size", "4"], tmp_path / "one", tmp_path)
    shared = [*flags, *WAYS[way], "--per_device_train_batch_size", "2"]
    assert train(TWO, shared, tmp_path / "two", tmp_path) == pytest.approx(alone, abs=1e-3)
    whole, spread = (load_file(tmp_path / where / "model.safetensors") for where in ("one", "two"))
    for key, tensor in whole.items():
        torch.testing.assert_close(spread[key], tensor, atol=2e-3, rtol=0)
