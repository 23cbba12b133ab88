"""DeepSpeed files: what they leave out, and what the flags contradict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baichuan.errors import UsageError
from baichuan.train.arguments import parse
from baichuan.train.deepspeed import check_agreement

ROOT = Path(__file__).parents[3]
FLAGS = ["--output_dir", "out", "--dataset", "x", "--gradient_accumulation_steps", "8"]


def settings(recipe):
    return recipe.training.hf_deepspeed_config.config


def test_the_readmes_file_obeys_the_flags_where_it_is_silent():
    recipe = parse([*FLAGS, "--max_grad_norm", "0.5", "--deepspeed", str(ROOT / "deepspeed.json")])
    config = settings(recipe)
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 2
    check_agreement(recipe.training)


def test_a_recipe_may_hold_the_settings_themselves(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: out\ndataset: x\ndeepspeed: {zero_optimization: {stage: 3}}\n")
    config = settings(parse([str(recipe)]))
    assert config["gradient_clipping"] == 1
    assert config["zero_optimization"] == {
        "stage": 3,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


def test_file_and_flags_that_differ(tmp_path):
    file = tmp_path / "deepspeed.json"
    content = {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 4}
    file.write_text(json.dumps(content))
    recipe = parse([*FLAGS, "--deepspeed", str(file)])
    told = r"differ: ds gradient_accumulation_steps=4 vs hf gradient_accumulation_steps=8\. Make"
    with pytest.raises(UsageError, match=told):
        check_agreement(recipe.training)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "is not JSON"), ("[]", "no settings of DeepSpeed"), ("{}", "no settings of")],
)
def test_a_file_that_is_none(tmp_path, text, problem):
    file = tmp_path / "deepspeed.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=rf"deepspeed.json.* {problem}"):
        parse([*FLAGS, "--deepspeed", str(file)])
    with pytest.raises(UsageError, match=r"absent\.json cannot be read"):
        parse([*FLAGS, "--deepspeed", str(tmp_path / "absent.json")])


def test_the_launchers_word_before_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: out\ndataset: x\nlora_rank: 4\n")
    assert parse(["--local_rank=1", str(recipe)]).method.lora_rank == 4
