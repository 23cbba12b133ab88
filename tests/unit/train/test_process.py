"""What a training leaves set in its process; each in its own, for nothing unsets it."""

import json
import os
import platform
import subprocess
import sys

import pytest

from baichuan.checkpoint.load import DEMO

TRAIN = "from baichuan.cli.train import run_train; run_train(sys.argv[1:])"
SUBNORMALS = """
smallest = torch.ones(2**22, dtype=torch.int32).view(torch.float32)  # by bits: nothing rounds them
print(json.dumps([torch.get_num_threads(), int((smallest * 1).count_nonzero())]))
"""
FREED = """
def own():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("RssAnon"))
torch.ones(2**22)  # freed, it makes malloc keep smaller ones
before = own()
held = [torch.ones(2**20) for _ in range(64)]
last = held.pop()
held.clear()
print((own() - before) // 1024)
"""


def printed(*code, arguments=()):
    script = "\n".join(("import json, sys, torch", *code))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_subnormal_numbers_are_0_in_all_threads_of_a_training(tmp_path):
    assert printed(SUBNORMALS) == [2, 2**22]
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Hello.", "output": "Good day."}] * 4))
    flags = ["--model_name_or_path", str(DEMO), "--dataset", str(rows), "--max_steps", "1"]
    flags += ["--output_dir", str(tmp_path / "out"), "--save_strategy", "no"]
    flags += ["--cache_dir", str(tmp_path / "cache")]
    assert printed(TRAIN, SUBNORMALS, arguments=flags) == [2, 0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set")
def test_freed_tensors_are_the_systems_again():
    prepare = "from baichuan.train.process import prepare_process; prepare_process()"
    assert printed(FREED) > 200
    assert printed(prepare, FREED) < 20
