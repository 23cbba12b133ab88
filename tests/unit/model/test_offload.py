"""Offloaded weights (accelerate): every way of asking gives the answers of the whole model."""

import accelerate
import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams

IDS = torch.arange(5, 25)[None]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def tokenizer(pytestconfig):
    return baichuan.BaichuanTokenizer.from_pretrained(
        pytestconfig.rootpath / "tests/data/tokenizer"
    )


@pytest.fixture(params=[("alibi", None), ("rope", 8), ("alibi", 4)], ids=str)
def saved(request, tmp_path):
    family, bits = request.param
    config = tiny_config(vocab_size=1000, position_embedding=family, initializer_range=0.2)
    model = baichuan.BaichuanForCausalLM(config).eval()
    if bits is not None:
        model.quantize(bits)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def load(directory, **options):
    return baichuan.BaichuanForCausalLM.from_pretrained(directory, **options)


def split(directory, folder):
    model = load(directory)
    half = sum(tensor.nbytes for tensor in model.state_dict().values()) // 2
    options = {"device_map": "auto", "max_memory": {"cpu": half}, "offload_folder": folder}
    model = load(directory, **options, offload_buffers=True)
    assert "disk" in model.hf_device_map.values()
    return model


def kept_in_memory(directory, folder):
    model = load(directory)
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    return model


def kept_on_disk(directory, folder):
    model = load(directory)
    accelerate.disk_offload(model, folder, execution_device="cpu", offload_buffers=True)
    return model


def answers(model, tokenizer):
    model.generation_config.update(**GREEDY)
    chat = model.chat(tokenizer, [{"role": "user", "content": "你好"}])
    engine = model.engine(tokenizer)
    assert isinstance(engine, Engine)
    params = SamplingParams(temperature=0, max_tokens=6)
    steps = engine.generate_batch([[5, 6, 7], [8, 9]], params)
    tokens = [(step.request, step.token) for step in steps]
    with torch.no_grad():
        return model(IDS).logits, model.generate(IDS), chat, tokens


@pytest.mark.parametrize("offload", [split, kept_in_memory, kept_on_disk])
def test_the_answers_are_those_of_the_whole_model(saved, tmp_path, tokenizer, offload):
    logits, generated, chat, tokens = answers(load(saved), tokenizer)
    model = offload(saved, tmp_path / "offloaded")
    found = answers(model, tokenizer)
    # Quantized products round their inputs, which a norm of its own rounds otherwise.
    assert (found[0] - logits).norm() < 1e-3 * logits.norm()
    assert torch.equal(found[1], generated)
    assert found[2:] == (chat, tokens)
    offloaded = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    assert offloaded  # still, after use


def test_a_hooked_norm_and_gate_see_what_they_compute(saved):
    model = load(saved)
    layer, seen = model.model.layers[0], {}
    for module in (layer.input_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj):
        module.register_forward_hook(lambda m, x, y: seen.update({m: (x[0], y)}))
    with torch.no_grad():
        model(IDS)
        embedded = model.model.embed_tokens(IDS)
        x, y = seen[layer.input_layernorm]
        assert torch.equal(x, embedded)
        rms = embedded.square().mean(-1, keepdim=True).add(layer.input_layernorm.eps).rsqrt()
        torch.testing.assert_close(y, embedded * rms * layer.input_layernorm.weight)
        assert seen[layer.mlp.gate_proj][1].shape == seen[layer.mlp.up_proj][1].shape
