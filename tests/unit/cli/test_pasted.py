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


SCRIPT = """#!/bin/bash
set -euo pipefail   # as scripts begin
export CUDA_VISIBLE_DEVICES=0,1
OUT="runs/$NAME"; RATE='1e-4'
MORE="--packing  --fp16"

python src/train_bash.py \\
    --output_dir ${OUT}/lora \\  
    --learning_rate $RATE ${EPOCHS:---num_train_epochs 2} $MORE "$@"
    --dataset "$NAME's data" '$literal' \\$5 a#b  # flags of a line without a backslash before it
"""  # noqa: W291


def test_variables_of_a_script_are_expanded_as_a_shell_does(monkeypatch):
    monkeypatch.setenv("NAME", "my run")
    read = read_command("\ufeff" + SCRIPT.replace("\n", "\r\n"))
    assert read.environment == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OUT": "runs/my run",
        "RATE": "1e-4",
        "MORE": "--packing  --fp16",
    }
    assert read.arguments == (
        *("--output_dir", "runs/my", "run/lora", "--learning_rate", "1e-4"),
        *("--num_train_epochs", "2", "--packing", "--fp16"),
        *("--dataset", "my run's data", "$literal", "$5", "a#b"),
    )


def test_the_home_directory_is_expanded_where_a_shell_would(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    read = read_command("python train.py --output_dir ~/out --dataset=~/d.json --x a~b '~/c'")
    assert read.arguments == (
        *("--output_dir", "/home/me/out", "--dataset=/home/me/d.json", "--x", "a~b", "~/c"),
    )


TRAIN = "python train.py --output_dir out"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{TRAIN} --overwrite_output_dir 2>&1 | tee log", "'2>&1' needs a shell"),
        (f"{TRAIN} > log.txt", "'>' needs a shell"),
        (f"{TRAIN} >log.txt", "'>log.txt' needs a shell"),
        (f"{TRAIN} | tee log", r"'\|' needs a shell"),
        (f"cd /data && {TRAIN}", "'&&' needs a shell"),
        (f"nohup {TRAIN} &", "'&' needs a shell"),
        (f"{TRAIN} --run_name $(date)", r"'\$\(date\)' needs a shell"),
        (f'{TRAIN} --run_name "a $(date)"', r"'\$\(date\)\"' needs a shell"),
        (f"{TRAIN} --run_name `date`", "'`' needs a shell"),
        (f"{TRAIN} --x ${{OUT%/}}", r"'\$\{OUT%/\}' needs a shell"),
        (f"{TRAIN} --x $1", r"'\$1' needs a shell"),
        (f"{TRAIN} --x $NOT_SET_HERE", r"The variable \$NOT_SET_HERE is not set"),
        (f'{TRAIN} --x "${{NOT_SET_HERE}}/y"', r"The variable \$NOT_SET_HERE is not set"),
        (f"cd /data\n{TRAIN}", "two commands, 'cd /data' and 'python train.py --output_dir out'"),
        (f"{TRAIN}; {TRAIN}", "two commands"),
    ],
)
def test_what_needs_a_shell_is_refused_by_name(text, problem):
    with pytest.raises(UsageError, match=problem):
        read_command(text)


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
        ('python train_bash.py --output_dir "a', "cannot be read: No closing quotation"),
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
