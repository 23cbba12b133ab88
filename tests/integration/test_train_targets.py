"""What learns: modules beside quantized layers, and models that go on from an adapter."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from baichuan.checkpoint.load import load
from baichuan.cli.merge import run_merge
from baichuan.errors import CheckpointError, UsageError

pytest.importorskip("datasets")

from baichuan.train.arguments import parse
from baichuan.train.run import run


def train(command, *more):
    run(parse([*command, *more]))


@pytest.fixture
def adapter(small, tmp_path):
    """An adapter of the small model that changes what it answers."""
    network, _ = load(small)
    config = LoraConfig(r=4, target_modules=["W_pack", "o_proj"], init_lora_weights=False)
    config.base_model_name_or_path = str(small)
    get_peft_model(network, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--bits 4 --additional_target lm_head", "lm_head includes lm_head, which is quantized"),
        (
            "--bits 8 --additional_target mlp",
            r"mlp includes model.layers.0.mlp.\w+, which is quant",
        ),
        ("--bits 3 --additional_target norm,W_pack", "W_pack, which is quantized"),
        ("--bits 4 --lora_target q_proj", "q_proj; there are W_pack"),
        ("--additional_target act_fn", "--additional_target names act_fn; there are"),
        ("--additional_target model", "includes every module of --lora_target"),
        ("--stage dpo --lora_target lm_head", "an adapter on it would not learn"),
    ],
)
def test_what_cannot_learn_is_said_before_anything_is_loaded(command, tmp_path, flags, problem):
    (tmp_path / "nothing.json").write_text("broken")  # reading it would be another error
    with pytest.raises(UsageError, match=problem):
        train(command, "--dataset", str(tmp_path / "nothing.json"), *flags.split())


@pytest.mark.parametrize("name", ["embed_tokens", "norm"])
def test_what_is_not_quantized_learns_beside_it(command, small, tmp_path, name):
    train(command, "--bits", "4", "--additional_target", name)
    out = tmp_path / "out"
    learned = load_file(out / "adapter_model.safetensors")
    (key,) = (key for key in learned if key.endswith(f"model.model.{name}.weight"))
    beside, _ = load(adapter=out, bits=4)
    before = load(small, bits=4)[0].get_submodule(f"model.{name}").weight
    assert not torch.equal(learned[key], before)
    assert torch.equal(beside.get_submodule(f"model.{name}").weight, learned[key])
    run_merge(out, tmp_path / "merged", None)
    merged, _ = load(tmp_path / "merged")
    assert torch.equal(merged.get_submodule(f"model.{name}").weight, learned[key])


@pytest.mark.parametrize("stage", ["sft", "pt", "dpo"])
def test_all_weights_go_on_from_an_adapter(command, pairs, adapter, small, tmp_path, stage):
    more = ["--stage", stage, "--finetuning_type", "full", "--adapter_name_or_path", str(adapter)]
    if stage == "pt":
        (tmp_path / "text.txt").write_text("How much is it? It is much.\n" * 9)
    data = {"sft": [], "pt": ["--dataset", str(tmp_path / "text.txt")]}
    train(command, *more, *data.get(stage, ["--dataset", str(pairs)]))
    begun, ended = load(small, adapter=adapter)[0], load(tmp_path / "out")[0]
    after = dict(ended.named_parameters())
    changed = [n for n, weight in begun.named_parameters() if not torch.equal(weight, after[n])]
    assert len(changed) == len(after)
    first = ended.get_submodule("model.layers.0.self_attn.W_pack").weight
    wanted = begun.get_submodule("model.layers.0.self_attn.W_pack").weight
    torch.testing.assert_close(first, wanted, atol=0.05, rtol=0)  # the adapter's share is in it
    records = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]


def test_layers_go_on_from_an_adapter(command, adapter, small, tmp_path):
    more = ["--finetuning_type", "freeze", "--freeze_trainable_layers", "1"]
    train(command, *more, "--adapter_name_or_path", str(adapter))
    begun, ended = load(small, adapter=adapter)[0], load(tmp_path / "out")[0]
    after = dict(ended.named_parameters())
    changed = {n for n, weight in begun.named_parameters() if not torch.equal(weight, after[n])}
    assert {name.rpartition("layers.")[2][0] for name in changed} == {"1"}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--lora_rank 16", r"--lora_rank is 16, but the adapter in .* was trained with 4"),
        ("--lora_target down_proj", r"--lora_target is \['down_proj'\], but"),
        ("--use_dora true", "--use_dora is True, but"),
    ],
)
def test_an_adapter_is_not_described_anew(command, adapter, flags, problem):
    with pytest.raises(UsageError, match=problem):
        train(command, "--adapter_name_or_path", str(adapter), *flags.split())


def test_an_adapter_that_is_not_there(command, tmp_path):
    with pytest.raises(CheckpointError, match="holds no adapter"):
        train(command, "--finetuning_type", "full", "--adapter_name_or_path", str(tmp_path))
