"""Files that a training reads: recipes, the registry, states, pickles of checkpoints."""

import io
import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.fuzz.harness import mutated, mutated_json, run_cases

pytest.importorskip("datasets")

from baichuan.train import deepspeed, pickles
from baichuan.train.recipe_file import read_recipe
from baichuan.train.registry import find
from baichuan.train.state import check_state

RECIPES = Path(__file__).parents[2] / "recipes"
ENTRY = {
    "file_name": "rows.json",
    "formatting": "sharegpt",
    "ranking": False,
    "columns": {"messages": "talk", "system": None},
    "tags": {"role_tag": "r", "content_tag": "c", "user_tag": "u", "assistant_tag": "a"},
    "split": "train",
    "num_samples": 3,
}
STATE = {
    "epoch": 0.5,
    "global_step": 2,
    "max_steps": 4,
    "num_train_epochs": 1,
    "total_flos": 1.0,
    "num_input_tokens_seen": 0,
    "train_batch_size": 2,
    "logging_steps": 1.0,
    "save_steps": 2,
    "eval_steps": 500,
    "best_metric": None,
    "best_global_step": None,
    "best_model_checkpoint": None,
    "log_history": [{"loss": 1.0, "step": 1}, {"eval_loss": 1.0, "step": 2}],
    "stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}},
}


def test_recipes(fuzz_cases, tmp_path):
    recipes = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
    tokens = [b"&a ", b"*a", b"<<: *a\n", b"!!int ''", b"2024-99-99", b"[" * 999, b"{a: " * 99]

    def case(rng):
        content = mutated(rng.choice(recipes), rng)
        at = rng.randrange(len(content) + 1)
        content = content[:at] + rng.choice(tokens) + content[at:]
        (tmp_path / "recipe.yaml").write_bytes(content)
        read_recipe(tmp_path / "recipe.yaml")

    run_cases(fuzz_cases // 4, case, name="recipe")


def test_deepspeed_files(fuzz_cases, tmp_path):
    content = json.loads((RECIPES / "zero3_offload.json").read_text())

    def case(rng):
        (tmp_path / "zero.json").write_text(json.dumps(mutated_json(content, rng)))
        deepspeed.complete(deepspeed.read(str(tmp_path / "zero.json")))

    run_cases(fuzz_cases // 4, case, name="DeepSpeed")


def test_registries(fuzz_cases, tmp_path):
    (tmp_path / "rows.json").write_text("[]")

    def case(rng):
        registry = mutated_json({"rows": ENTRY, "more": {**ENTRY, "folder": "."}}, rng)
        (tmp_path / "dataset_info.json").write_text(json.dumps(registry))
        find(["rows"], str(tmp_path))

    run_cases(fuzz_cases // 4, case, name="registry")


def test_states(fuzz_cases, tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps(STATE))
    check_state(tmp_path)

    def case(rng):
        (tmp_path / "trainer_state.json").write_text(json.dumps(mutated_json(STATE, rng)))
        check_state(tmp_path)

    run_cases(fuzz_cases // 4, case, name="state")


def test_pickles(fuzz_cases, tmp_path):
    state = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    kinds = {}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        kinds[f"optimizer{zipped}.pt"] = buffer.getvalue()
    kinds[".metadata"] = pickle.dumps({"dtype": torch.float32, "size": torch.Size([3])}, 4)

    def case(rng):
        name = rng.choice(list(kinds))
        file = tmp_path / name
        file.write_bytes(mutated(kinds[name], rng))
        try:
            pickles.check(tmp_path)
        finally:
            file.unlink()

    with pickles.restricted(deepspeed=False):
        run_cases(fuzz_cases // 2, case, name="pickle")
