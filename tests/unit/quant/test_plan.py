"""Which layers are quantized, and the sentences for plans that cannot be."""

import pytest
import torch
from torch import nn

from baichuan.errors import UsageError
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.plan import Plan, linears, make_room, quantize_modules
from baichuan.quant.scheme import Scheme


def network(bias=False):
    """Two layers and a head, as far as a plan can see."""
    net = nn.Module()
    net.first, net.second = nn.Linear(40, 20, bias=False), nn.Linear(20, 40, bias=bias)
    net.embed, net.lm_head = nn.Embedding(7, 40), nn.Linear(40, 7, bias=False)
    return net


PLAN = Plan(Scheme(4, 32))


def test_every_linear_layer_and_the_head_with_eight_bits():
    assert linears(network(), PLAN) == {
        "first": Scheme(4, 32),
        "second": Scheme(4, 32),
        "lm_head": Scheme(8, None),
    }
    assert list(linears(network(), PLAN.keeping("second"))) == ["first", "lm_head"]
    assert list(linears(network(), PLAN.keeping("model.second").below("model."))) == [
        "first",
        "lm_head",
    ]


def test_a_plan_survives_saving():
    plan = Plan(Scheme(8, 64), {"a": Scheme(4, 128), "b": None})
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.to_dict() == {
        "format_version": 1,
        "bits": 8,
        "group_size": 64,
        "exceptions": {"a": {"bits": 4, "group_size": 128}, "b": None},
    }


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"format_version": 2, "bits": 4}, r"format version 2.*reads 1.*Install a newer"),
        ({}, "cannot be read.*needs 'bits'"),
        ({"bits": 4, "exceptions": {"a": {"bits": 4}}}, "cannot be read.*group_size"),
        ({"bits": 4, "exceptions": ["a"]}, "cannot be read"),
        ({"bits": 4, "calibrated": True}, "has calibrated, which this version"),
        ({"bits": 5}, "bits is 5; allowed is 8, 4 or 3"),
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": 4.0}, "bits is 4.0"),
        ({"bits": True}, "bits is True"),
        (
            {"bits": 4, "group_size": 48},
            "group_size is 48; allowed is 32, 64, 128, 256. Left",
        ),
        ({"bits": 4, "group_size": 64.0}, "group_size is 64.0"),
    ],
)
def test_what_no_plan_can_be_is_refused(saved, message):
    with pytest.raises(UsageError, match=message):
        Plan.from_dict(saved)


def test_room_is_made_where_the_layers_were():
    with torch.device("meta"):
        net = network()
    make_room(net, PLAN)
    assert isinstance(net.first, QuantizedLinear) and net.first.codes.device.type == "meta"
    assert net.lm_head.scheme == Scheme(8, None)
    assert isinstance(net.embed, nn.Embedding)
    filled = network()
    quantize_modules(filled, PLAN)
    shapes = {name: tensor.shape for name, tensor in filled.state_dict().items()}
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes


def test_layers_are_quantized_one_by_one():
    done = []
    quantize_modules(network(), PLAN, done.append)
    assert done == ["first", "second", "lm_head"]


def test_a_bias_is_refused():
    with pytest.raises(UsageError, match="second has a bias"):
        quantize_modules(network(bias=True), PLAN)


def test_weights_elsewhere_are_refused_before_anything_changes():
    net = network()
    net.second.to("meta")
    with pytest.raises(UsageError, match="second is not in memory"):
        quantize_modules(net, PLAN)
    assert type(net.first) is nn.Linear


def test_a_broken_weight_is_named():
    net = network()
    net.second.weight.data[3, 3] = torch.nan
    with pytest.raises(UsageError, match="second: The weight holds NaN"):
        quantize_modules(net, PLAN)


@pytest.mark.parametrize(
    ("scheme", "columns", "bits"),
    [
        (Scheme(4, 128), 5120, 4.125),
        (Scheme(4, 32), 5120, 4.5),
        (Scheme(8, None), 5120, 8 + 16 / 5120),
        (Scheme(4, 128), 130, (256 * 4 + 2 * 16) / 130),
    ],
)
def test_stored_bits(scheme, columns, bits):
    assert scheme.stored_bits(columns) == bits
