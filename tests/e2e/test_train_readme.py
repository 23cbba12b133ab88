"""The original README's two commands, pasted as it prints them, on the data that they name."""

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
    """A directory where the commands find what they name."""
    torch.manual_seed(3)
    model = tmp_path / MODEL
    baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000)).save_pretrained(model)
    for file in (ROOT / "tests" / "data" / "tokenizer").glob("tokenizer*"):
        shutil.copy(file, model)
    (tmp_path / "data").mkdir()
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src" / "train_bash.py", tmp_path / "src")
    shutil.copy(ROOT / "deepspeed.json", tmp_path)
    return tmp_path


def register(where, english, chinese):
    """Let the data's names stand for the shortest rows of the demo data; a hundredth evaluates.

    Short, since processors without bfloat16 take minutes for long ones.
    """
    registry = {}
    for tongue, count in (("en", english), ("zh", chinese)):
        rows = json.loads((DATA / f"alpaca_{tongue}_demo.json").read_text("utf-8"))
        rows.sort(key=lambda row: len("".join(row.values())))
        name = f"alpaca_gpt4_{tongue}"
        (where / "data" / f"{name}.json").write_text(json.dumps(rows[:count]))
        registry[name] = {"file_name": f"{name}.json"}
    (where / "data" / "dataset_info.json").write_text(json.dumps(registry))


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
    register(workplace, 33, 32)
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


@pytest.mark.slow
def test_the_full_command_by_deepspeed_loses_what_one_process_loses(workplace):
    """As printed, but for the number of processes: `--num_gpus=8` finds two of them here."""
    pytest.importorskip("deepspeed")
    register(workplace, 162, 161)  # twice five steps of 64 rows: the command logs the tenth
    text = printed("full").replace("--num_gpus=8", "--num_gpus=2")
    alone = text.replace("deepspeed --num_gpus=2", "python").replace(
        "--deepspeed deepspeed.json", ""
    )
    alone = alone.replace("accumulation_steps 8", "accumulation_steps 16").replace(OUT, "alone")
    for command in (text, alone):
        run([sys.executable, "-m", "baichuan.cli.main", "train", "-"], workplace, input=command)
    shared, one = (losses(workplace / out) for out in (OUT, "alone"))
    assert [step for step, _ in shared] == [step for step, _ in one] == [10]
    assert shared[0][1] == pytest.approx(one[0][1], abs=1e-3)
    assert (workplace / OUT / "training_loss.png").exists()
    before, after = (load_file(workplace / path / "model.safetensors") for path in (MODEL, OUT))
    # The result is bfloat16, where a norm's weight of 1 does not move by the steps of this rate.
    learned = [name for name, weight in before.items() if weight.dim() == 2]
    assert not any(torch.equal(after[name], before[name].to(after[name])) for name in learned)


def losses(out):
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [(record["step"], record["loss"]) for record in history if "loss" in record]
