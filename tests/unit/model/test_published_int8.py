"""Checkpoints that the original quantized, in each layout that they may have."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_config
from transformers import AutoModelForCausalLM

import baichuan
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.errors import CheckpointError, UsageError
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

TOKENIZER = Path(__file__).parents[2] / "data" / "tokenizer"


def published(directory, *, transposed, column, name, dtype, pickled=False):
    """Write what the original's quantizer holds, in one of its possible forms."""
    model = baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000, initializer_range=0.2)).eval()
    tensors = dict(model.state_dict())
    model.quantize(8, scheme="original")
    for module_name, module in model.named_modules():
        if isinstance(module, OriginalLinear):
            codes = module.codes if transposed else module.codes.T
            scales = module.scales[:, None] if column else module.scales
            tensors[f"{module_name}.weight"] = codes.contiguous()
            tensors[f"{module_name}.{name}"] = scales.to(dtype)
    if pickled:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = tiny_config(vocab_size=1000, architectures=["BaichuanForCausalLM"])
    config.save_pretrained(directory)
    model.generation_config.max_new_tokens = 5
    model.generation_config.save_pretrained(directory)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, directory)
    return model


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    ("column", "name", "dtype", "pickled"),
    [
        (False, "scale", torch.float32, False),
        (True, "weight_scale", torch.float16, False),
        (False, "scales", torch.float32, True),
    ],
)
@torch.no_grad()
def test_every_form_gives_the_same_network(tmp_path, transposed, column, name, dtype, pickled):
    original = published(
        tmp_path, transposed=transposed, column=column, name=name, dtype=dtype, pickled=pickled
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    pairs = [
        (layer, original.get_submodule(name))
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear)
    ]
    assert len(pairs) == 10
    for ours, theirs in pairs:
        # Equal but for scales of 8 bits (and of 11 in float16 files).
        torch.testing.assert_close(
            ours.dequantize(), theirs.dequantize(), rtol=2**-8 + 2**-11, atol=0
        )
    ids = torch.arange(30)[None] + 5
    assert model(ids).logits.argmax(-1)[0, -1] == original(ids).logits.argmax(-1)[0, -1]
    assert model.generation_config.max_new_tokens == 5


def test_it_is_loaded_and_saved_like_any_other(tmp_path):
    published(tmp_path, transposed=True, column=False, name="scale", dtype=torch.float32)
    model, tokenizer = baichuan.load(tmp_path)
    message = [{"role": "user", "content": "hello"}]
    answer = model.chat(tokenizer, message)
    model.save_pretrained(tmp_path / "again")
    again = baichuan.BaichuanForCausalLM.from_pretrained(tmp_path / "again")
    assert again.chat(tokenizer, message) == answer


def test_what_is_no_int8_is_refused(tmp_path):
    model = baichuan.BaichuanForCausalLM(tiny_config())
    tensors = dict(model.state_dict())
    tensors["model.layers.0.self_attn.W_pack.scale"] = torch.ones(144)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"W_pack.weight is torch.float32.*144 scales"):
        baichuan.BaichuanForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_pack.scale": torch.full((144,), torch.nan)}, r"scales of .*W_pack.weight hold NaN"),
        ({"W_pack.scale": torch.tensor(1.0)}, r"int8 \[144, 48\] with 1 scales"),
        ({"W_pack.weight": torch.tensor(1, dtype=torch.int8)}, r"W_pack.weight is torch.int8 \[\]"),
        ({"o_proj.weight": torch.ones(48, dtype=torch.int8)}, r"o_proj.weight is torch.int8 \[48"),
        (
            {"o_proj.weight": torch.ones(48, 2, dtype=torch.int8)},
            "o_proj.weight has 2 columns, but .* describes 48",
        ),
    ],
    ids=["NaN", "one scale", "a number", "a vector", "narrow"],
)
def test_damaged_int8_is_refused(tmp_path, changes, message):
    published(tmp_path, transposed=False, column=False, name="scale", dtype=torch.float32)
    file = tmp_path / "model.safetensors"
    named = {f"model.layers.0.self_attn.{name}": tensor for name, tensor in changes.items()}
    save_file({**load_file(file), **named}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        baichuan.BaichuanForCausalLM.from_pretrained(tmp_path)


def test_it_is_quantized_already(tmp_path):
    published(tmp_path, transposed=True, column=False, name="scale", dtype=torch.float32)
    model, _ = baichuan.load(tmp_path, bits=8)
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantizedLinear)
    with pytest.raises(UsageError, match=r"bits is 4, but the checkpoint is quantized .*\(int8\)"):
        baichuan.load(tmp_path, bits=4)
    with pytest.raises(CheckpointError, match="is quantized already; quantizing it twice"):
        quantize_checkpoint(tmp_path, tmp_path / "new", Plan(Scheme(4, 32)))
