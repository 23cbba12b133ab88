"""Training commands as text, the original README's among them."""

from __future__ import annotations

import sys

import pytest

from baichuan.cli import pasted
from baichuan.cli.pasted import Pasted, read_command
from baichuan.errors import UsageError

ARGUMENTS = ("--stage", "sft", "--lora_rank", "8", "--fp16")
#: Line ends as the original README has them: some with a space behind the backslash.
LINES = "src/train_bash.py \\\n    --stage sft \\ \n    --lora_rank 8 \\ \r\n    --fp16"


@pytest.mark.parametrize(
    ("text", "environment", "launcher"),
    [
        (f"CUDA_VISIBLE_DEVICES=0 python {LINES}", {"CUDA_VISIBLE_DEVICES": "0"}, ()),
        (f"deepspeed --num_gpus=8 {LINES}", {}, ("deepspeed", "--num_gpus=8")),
        (f"  torchrun --nproc_per_node 2 {LINES} \\ \n", {}, ("torchrun", "--nproc_per_node", "2")),
        (f"accelerate launch {LINES}  # comment", {}, ("accelerate", "launch")),
        ("baichuan train --stage sft --lora_rank 8 --fp16", {}, ()),
        (
            "deepspeed --module baichuan.cli.train --stage sft --lora_rank 8 --fp16",
            {},
            ("deepspeed",),
        ),
    ],
)
def test_commands_as_users_have_them(text, environment, launcher):
    started = (*launcher, "--module", "baichuan.cli.train") if launcher else ()
    assert read_command(text) == Pasted(environment, started, ARGUMENTS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rm -rf train.py", "This is no training command: 'rm -rf train.py'"),
        ("python other.py --stage sft", "This is no training command"),
        ("", "This is no training command"),
        (
            "python train_bash.py --output_dir 'a",
            "cannot be read: No closing quotation",
        ),
    ],
)
def test_anything_else_is_refused(text, problem):
    with pytest.raises(UsageError, match=problem):
        read_command(text)


def test_a_launcher_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="deepspeed is not installed"):
        pasted.start(("deepspeed",), ())
