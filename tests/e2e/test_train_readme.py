"""The original README's LoRA command, pasted as it prints it, on the data that it names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("datasets")

import baichuan
from tests.conftest import SHARED, tiny_config

ROOT = Path(__file__).parents[2]
DATA = SHARED / "data" / "sft"
MODEL = "baichuan-inc/Baichuan-13B-Base"
OUT = "path_to_your_sft_checkpoint"
LIMIT = 400

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="shared/data/sft, the demo data of alpaca_gpt4, is not here"
)


@pytest.fixture
def workplace(tmp_path):
    """A directory where the commands find what they name: 65 rows, of which one evaluates."""
    torch.manual_seed(3)
    model = tmp_path / MODEL
    baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000)).save_pretrained(model)
    for file in (ROOT / "tests" / "data" / "tokenizer").glob("tokenizer*"):
        shutil.copy(file, model)
    registry = {
        f"alpaca_gpt4_{tongue}": {
            "file_name": str(DATA / f"alpaca_{tongue}_demo.json"),
            "num_samples": count,
        }
        for tongue, count in (("en", 33), ("zh", 32))
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(registry))
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src" / "train_bash.py", tmp_path / "src")
    shutil.copy(ROOT / "deepspeed.json", tmp_path)
    return tmp_path


def run(command, where, **more):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(where / "cache"),
    }
    done = subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=LIMIT, **more
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def printed(name):
    return (ROOT / "recipes" / f"readme_{name}.sh").read_text()


@pytest.mark.slow
def test_the_lora_command_pasted_with_its_spaces(workplace):
    text = printed("lora")
    assert "--lora_rank 8 \\ \n" in text  # here a shell would end the command
    done = run([sys.executable, "-m", "baichuan.cli.main", "train", "-"], workplace, input=text)
    assert "--dev_ratio is called --val_size now." in done.stderr
    assert "accelerator" not in done.stderr  # DeepSpeed's warnings are for those who use it
    out = workplace / OUT
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["r"], settings["target_modules"]) == (8, ["W_pack"])
    assert settings["base_model_name_or_path"] == MODEL
    assert (out / "training_loss.png").exists()
    learned = load_file(out / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for tensor in learned.values())  # B begins with zeros
