"""The decode program equals the layers' own forward to the last bit, and knows when not to run."""

import pytest
import torch
from torch import nn

from baichuan.engine.cache import Batch, Chunk
from baichuan.kernels import native
from baichuan.model import decoding
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

needs_native = pytest.mark.skipif(native.available() == ("torch",), reason="no native kernels")


def quantized(positions="alibi", bits=4, dtype=torch.float32):
    torch.manual_seed(0)
    config = BaichuanConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=3,
        num_attention_heads=6,
        position_embedding=positions,
    )
    return BaichuanForCausalLM(config).to(dtype).eval().quantize(bits)


def filled(model, lengths):
    caches = [model.new_cache() for _ in lengths]
    for number, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        prompt = [(7 * i + number) % 300 for i in range(length)]
        model.forward_chunks([Chunk(prompt, cache)])
    return caches


def steps(model, lengths, count=3):
    """Logits of some steps of all sequences at once."""
    caches, out = filled(model, lengths), []
    for step in range(count):
        chunks = [Chunk([11 * step + row], cache) for row, cache in enumerate(caches)]
        out.append(torch.cat(model.forward_chunks(chunks)))
    return torch.stack(out)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", ["alibi", "rope"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_program_equals_the_layers(monkeypatch, bits, positions, dtype):
    model, lengths = quantized(positions, bits, dtype), [25, 62, 64, 130]
    runs = []
    real = decoding.decode

    def counted(*arguments):
        runs.append(1)
        return real(*arguments)

    monkeypatch.setattr(decoding, "decode", counted)
    whole = steps(model, lengths)
    assert len(runs) == 3  # the steps, not the prompts
    monkeypatch.setattr(decoding, "applies", lambda *_: False)
    assert torch.equal(whole, steps(model, lengths))
    assert torch.equal(whole[:, 2], steps(model, lengths[2:3]).new_tensor(alone(model, 2, lengths)))


@needs_native
@pytest.mark.parametrize("positions", ["alibi", "rope"])
def test_tokens_together_are_those_one_by_one(positions):
    model, tokens = quantized(positions, 4, torch.bfloat16), [3, 1, 4, 1, 5, 9, 2, 6]
    assert model.exact_rows
    (cache, other), (twin, twins_other) = filled(model, [60, 9]), filled(model, [60, 9])
    together, beside = model.forward_chunks([Chunk(tokens, cache, logits=8), Chunk([7], other)])
    apart = [model.forward_chunks([Chunk([token], twin)])[0] for token in tokens]
    assert torch.equal(together, torch.cat(apart))
    assert torch.equal(beside, model.forward_chunks([Chunk([7], twins_other)])[0])
    assert cache.tokens == twin.tokens


def alone(model, row, lengths):
    """Logits of the same steps of one sequence by itself."""
    cache = filled(model, lengths)[row]
    return [
        model.forward_chunks([Chunk([11 * step + row], cache)])[0][0].tolist() for step in range(3)
    ]


@needs_native
@torch.inference_mode()
def test_it_applies_where_nothing_else_wants_to_see_the_layers(monkeypatch):
    model = quantized()
    layers, x = model.model.layers, torch.zeros(1, 2, 96)
    batch = Batch([Chunk([1], model.new_cache()), Chunk([2], model.new_cache())])
    assert decoding.applies(layers, x, batch)
    assert not decoding.applies(layers, x, None)
    assert not decoding.applies(layers, x.half(), batch)
    assert not decoding.applies(
        layers, x[:, :1].repeat(1, 17, 1), Batch([Chunk([1] * 17, model.new_cache())])
    )
    with torch.enable_grad():
        assert not decoding.applies(layers, x, batch)
    monkeypatch.setenv("BAICHUAN_KERNELS", "torch")
    assert not decoding.applies(layers, x, batch)
    monkeypatch.undo()
    seen = layers[1].mlp.down_proj.register_forward_hook(lambda *_: None)
    assert not decoding.applies(layers, x, batch)
    seen.remove()
    assert decoding.applies(layers, x, batch)
    layers[2].self_attn.o_proj = nn.Linear(96, 96, bias=False)
    assert not decoding.applies(layers, x, batch)


def test_hidden_states_are_still_to_be_had():
    model = quantized()
    cache = filled(model, [5])[0]
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor([[9]]),
            cache=Batch([Chunk([9], cache)]),
            output_hidden_states=True,
        )
    assert len(out.hidden_states) == 4
