"""Adapters: beside quantized layers, merged into float ones, and what is said of broken ones."""

import json

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import tiny_config
from transformers.integrations import peft as integration

import baichuan
from baichuan.errors import CheckpointError, UsageError
from baichuan.model.adapters import (
    attach_adapter,
    load_for_inference,
    read_adapter_config,
    with_quantized,
)
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear

TARGETS = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(5, 25)[None]
LAYERS = {"blocks": QuantizedLinear, "original": OriginalLinear}


def network(bits=None, scheme="blocks"):
    torch.manual_seed(7)
    model = baichuan.BaichuanForCausalLM(tiny_config(initializer_range=0.2)).eval()
    return model if bits is None else model.quantize(bits, scheme=scheme)


def config(**changes):
    given = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, **changes}
    return LoraConfig(init_lora_weights=False, **given)  # so that it changes what comes out


@pytest.fixture(params=[(None, "blocks"), (4, "blocks"), (8, "blocks"), (8, "original")])
def kind(request):
    return request.param


@pytest.fixture
def adapted(kind, tmp_path):
    """A network with an adapter, and the directory that the adapter was saved in."""
    model = get_peft_model(network(*kind), with_quantized(config())).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_a_saved_adapter_gives_the_same_answers(kind, adapted):
    model, directory = adapted
    loaded = load_for_inference(network(*kind), directory)
    assert type(loaded) is baichuan.BaichuanForCausalLM
    assert not loaded.training
    # Beside quantized weights nothing is rounded anew; merged ones are summed in another order.
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    assert (logits(loaded) - logits(network(*kind))).abs().max() > 0.1


@pytest.mark.parametrize("kind", [(None, "blocks")], indirect=True)
def test_peft_itself_loads_it(adapted):
    model, directory = adapted
    again = PeftModel.from_pretrained(network(), str(directory)).eval()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.skipif(
    Version(peft.__version__) < Version(integration.MIN_PEFT_VERSION),
    reason=f"this transformers wants peft {integration.MIN_PEFT_VERSION} for its own ways",
)
def test_transformers_own_ways_work(kind, adapted):
    model, directory = adapted
    loaded = network(*kind)
    loaded.load_adapter(str(directory))
    assert torch.equal(logits(loaded.eval()), logits(model))
    added = network(*kind)
    added.add_adapter(config())
    assert any(p.requires_grad for p in added.parameters())


@pytest.mark.parametrize("kind", [(4, "blocks"), (8, "blocks"), (8, "original")], indirect=True)
def test_merging_into_quantized_weights_rounds_them_anew(kind, adapted):
    _, directory = adapted
    base = network(*kind)
    wanted = {
        name: module.get_base_layer().dequantize() + module.get_delta_weight("default")
        for name, module in attach_adapter(base, directory).named_modules()
        if hasattr(module, "get_delta_weight")
    }
    merged = attach_adapter(network(*kind), directory).merge_and_unload()
    for name, weight in wanted.items():
        layer = merged.get_submodule(name.removeprefix("base_model.model."))
        assert type(layer) is LAYERS[kind[1]]
        again = type(layer).from_weight(weight, layer.scheme)
        assert torch.equal(layer.codes, again.codes)
        assert torch.equal(layer.scales, again.scales)


def test_quantized_merges_are_checked_and_are_for_good():
    model = get_peft_model(network(4), with_quantized(config()))
    layer = model.base_model.model.model.layers[0].self_attn.W_pack
    layer.unmerge()  # nothing to take out
    layer.merge()
    with pytest.raises(UsageError, match="cannot be taken out again"):
        layer.unmerge()
    other = model.base_model.model.model.layers[1].self_attn.W_pack
    other.lora_B["default"].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        other.merge(safe_merge=True)


def test_gradients_beside_quantized_layers_are_those_of_the_dequantized_weights():
    quantized = get_peft_model(network(8), with_quantized(config()))
    plain = get_peft_model(network(8).dequantize(), config())
    learned = {n: p for n, p in quantized.named_parameters() if "lora_" in n}
    assert learned
    plain.load_state_dict(learned, strict=False)
    for model in (quantized, plain):
        model.train()
        model(IDS, labels=IDS).loss.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(learned[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_dora_is_refused_beside_quantized_layers():
    with pytest.raises(UsageError, match=r"leave out either --use_dora or --bits"):
        with_quantized(config(use_dora=True))


def test_what_is_no_adapter_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no adapter: there is no adapter_config"):
        read_adapter_config(tmp_path)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        network(4).load_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "MAGIC"}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter_config(tmp_path)


def test_an_adapter_that_may_not_be_read_is_not_called_damaged(unprivileged):
    config().save_pretrained(unprivileged)
    for path in (unprivileged / "adapter_config.json", unprivileged):
        path.chmod(0)
        with pytest.raises(CheckpointError, match=rf"^{path} cannot be read: permission denied"):
            attach_adapter(network(), unprivileged)
        path.chmod(0o700)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    wide = baichuan.BaichuanForCausalLM(tiny_config(hidden_size=96))
    get_peft_model(wide, config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*size mismatch"):
        attach_adapter(network(), tmp_path)


def test_a_damaged_adapter_is_refused(tmp_path):
    get_peft_model(network(), config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="does not fit the model"):
        attach_adapter(network(), tmp_path)
