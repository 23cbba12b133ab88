"""Random networks, and the same weights under both position embeddings."""

import copy

import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.bench.job import Job, weight_bytes
from baichuan.bench.networks import both_positions, loaded_network, random_network
from baichuan.engine.cache import Chunk
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.plan import Plan, make_room
from baichuan.quant.scheme import Scheme

#: Rows of whole groups, so that the spread of the weights can be counted without filling.
SHAPE = {"hidden_size": 384, "intermediate_size": 512, "num_attention_heads": 6}


def empty(bits: int | None, **changes) -> baichuan.BaichuanForCausalLM:
    with torch.device("meta"):
        network = baichuan.BaichuanForCausalLM(tiny_config(**{**SHAPE, **changes})).eval()
    network.to(torch.bfloat16)
    if bits:
        make_room(network, Plan(Scheme.of_bits(bits)))
    return network


def logits(network, tokens=(5, 9, 300, 2, 44, 5, 17)):
    return network.forward_chunks([Chunk(list(tokens), network.new_cache(), logits=7)])[0]


@pytest.mark.parametrize("huge_pages", [False, True])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_random_weights_are_those_of_an_initialised_network(bits, huge_pages):
    told = []
    job = Job(random="13b", device="cpu", huge_pages=huge_pages)
    network, decode = random_network(empty(bits), job, lambda *done: told.append(done))
    assert told[-1] == (weight_bytes(network), weight_bytes(network))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    for module in network.modules():
        if isinstance(module, (QuantizedLinear, torch.nn.Linear)):
            quantized = isinstance(module, QuantizedLinear)
            assert quantized == bool(bits)
            weight = module.dequantize() if quantized else module.weight.detach().float()
            assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
            assert abs(float(weight.mean())) < 0.001
    norm = network.model.norm.weight
    assert torch.equal(norm, torch.ones_like(norm))
    out = logits(network)
    assert out.isfinite().all()
    assert 0 < float(out.std()) < 10
    assert decode([7, 8]) == "xx"


def test_int8_codes_are_those_that_rounding_gives():
    """The kernels' 16-bit products have no room for -128."""
    network, _ = random_network(empty(8), Job(random="13b", device="cpu"), lambda done, total: None)
    codes = [m.codes for m in network.modules() if isinstance(m, QuantizedLinear)]
    assert min(int(c.min()) for c in codes) == 1
    assert max(int(c.max()) for c in codes) == 255


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("own", ["alibi", "rope"])
def test_both_positions_share_their_weights(own, bits):
    model, _ = random_network(
        empty(bits, position_embedding=own), Job(random="13b", device="cpu"), lambda d, t: None
    )
    before = weight_bytes(model)
    both = both_positions(model)
    assert set(both) == {"alibi", "rope"}
    assert both[own] is model
    other = both["rope" if own == "alibi" else "alibi"]
    shared = {t.data_ptr() for t in model.state_dict().values()}
    assert {t.data_ptr() for t in other.state_dict().values()} == shared
    assert weight_bytes(other) == weight_bytes(model) == before
    # What a network of its own under the other embedding computes from the same weights.
    alone = empty(bits, position_embedding=other.config.position_embedding)
    alone.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert torch.equal(logits(other), logits(alone))
    assert not torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(
    ("precision", "dtype", "quantized"),
    [
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, False),
        ("int8", torch.float32, True),
        ("int4", torch.float32, True),
    ],
)
def test_the_demo_in_every_precision(precision, dtype, quantized):
    model, decode = loaded_network(Job(device="cpu"), precision)
    assert model.dtype == dtype
    assert isinstance(model.lm_head, QuantizedLinear) == quantized
    assert decode([1000, 1001])
