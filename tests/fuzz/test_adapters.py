"""Adapters, damaged or hostile: most cases at the configuration, a sample put into a network."""

import json
import sys

import pytest
from peft import LoraConfig, get_peft_model

import baichuan
from baichuan.model.adapters import load_for_inference, read_adapter_config
from tests.conftest import tiny_config
from tests.fuzz.harness import mutated, mutated_json, run_cases

#: What an adapter may name, and what may stand there.
_VALUES = (
    *("W_pack", "lm_head", r".*\\.(W_pack|o_proj)", r"(\\w+\\.?)+!", ".?" * 60, "all-linear", "["),
    *("pissa_niter_100000", "loftq", "olora", "lora.evil", {"W_pack": 3}, {"(.*)*": 4}, [0, 1]),
    *({"loftq_bits": 4}, "PROMPT_TUNING", "ADALORA", "LORA", {"cache_file": "x"}, "all"),
)


@pytest.fixture
def adapter(tmp_path):
    given = {"r": 4, "target_modules": ["W_pack", "down_proj"], "rank_pattern": {"down_proj": 2}}
    given |= {"modules_to_save": ["norm"], "task_type": "CAUSAL_LM", "alpha_pattern": {"W_pack": 1}}
    model = get_peft_model(baichuan.BaichuanForCausalLM(tiny_config()), LoraConfig(**given))
    model.save_pretrained(tmp_path)
    return tmp_path


def test_adapters(adapter, fuzz_cases):
    file, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    original, tensors = file.read_bytes(), weights.read_bytes()
    modules = set(sys.modules)

    def case(rng):
        weights_too = rng.random() < 0.1
        changed = mutated_json(json.loads(original), rng, _VALUES)
        raw = json.dumps(changed).encode() if rng.random() < 0.8 else mutated(original, rng)
        file.write_bytes(original if weights_too else raw)
        weights.write_bytes(mutated(tensors, rng) if weights_too else tensors)
        read_adapter_config(adapter)
        if weights_too or rng.random() < 0.2:
            model = baichuan.BaichuanForCausalLM(tiny_config())
            if rng.random() < 0.5:
                load_for_inference(model, adapter)
            else:
                model.load_adapter(str(adapter))

    run_cases(fuzz_cases, case, name="adapters")
    imported = sorted(set(sys.modules) - modules)
    assert not [name for name in imported if "evil" in name or "megatron" in name]
