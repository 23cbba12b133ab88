"""A small model and rows to train it on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_config

import baichuan

TOKENIZER = Path(__file__).parents[1] / "data" / "tokenizer"


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A checkpoint of two layers, with a real vocabulary, in float32."""
    directory = tmp_path_factory.mktemp("small") / "model"
    torch.manual_seed(3)
    baichuan.BaichuanForCausalLM(tiny_config(vocab_size=64000)).save_pretrained(directory)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """Questions and answers of several lengths."""
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    table = [
        {"instruction": f"How much is {i} and {i}?", "input": "", "output": f"It is {2 * i}. " * i}
        for i in range(1, 13)
    ]
    path.write_text(json.dumps(table))
    return path


@pytest.fixture
def command(small, rows, tmp_path):
    """A training of a few steps, as a command line."""
    return [
        *("--model_name_or_path", str(small), "--dataset", str(rows)),
        *("--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "2"),
        *("--max_steps", "4", "--logging_steps", "1", "--learning_rate", "0.01"),
        *("--save_strategy", "no"),
    ]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A question with a better and a worse answer, eight times."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    said = {"from": "human", "value": "Is it good?"}
    chosen, rejected = ({"from": "gpt", "value": text} for text in ("Yes, it is.", "No, never."))
    row = {"conversations": [said], "chosen": chosen, "rejected": rejected}
    path.write_text(json.dumps([row] * 8))
    return path
