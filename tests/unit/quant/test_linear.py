"""A quantized layer as a module: what casts, copies and files do to it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from baichuan.kernels.ops import Norm
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.scheme import Scheme

SCHEMES = [Scheme(8, None), Scheme(8, 64), Scheme(4, 128), Scheme(4, 32)]


@pytest.fixture(params=SCHEMES, ids=str)
def layer(request):
    return QuantizedLinear.from_weight(torch.randn(40, 70), request.param)


def equal(a, b):
    assert a.state_dict().keys() == b.state_dict().keys() == {"codes", "scales"}
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_multiplies_in_the_dtype_of_its_input(layer, dtype):
    x = torch.randn(2, 3, 70, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype and y.shape == (2, 3, 40)
    expected = F.linear(x.float(), layer.dequantize())
    assert (y.float() - expected).norm() < 0.02 * expected.norm()


def test_fused_is_as_step_by_step(layer):
    other = QuantizedLinear.from_weight(torch.randn(40, 70), layer.scheme)
    x, residual, weight = torch.randn(3, 70), torch.randn(3, 40), torch.rand(70) + 0.5
    y = layer(x, norm=Norm(weight, 1e-6), up=other, residual=residual)
    inner = F.rms_norm(x, (70,), weight, 1e-6)
    expected = F.silu(layer(inner)) * other(inner) + residual
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.2)


def test_casts_keep_codes_and_scales(layer):
    before = copy.deepcopy(layer)
    for cast in ("half", "float", "double", "bfloat16"):
        assert equal(getattr(layer, cast)(), before)
    assert equal(layer.to(torch.float16), before)
    assert layer.scales.dtype == torch.bfloat16 and layer.codes.dtype == torch.uint8
    assert layer.to("meta").codes.device.type == "meta"
    assert layer.scales.dtype == torch.bfloat16


def test_copies_are_equal_and_apart(layer):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert equal(layer, other)
        x = torch.randn(2, 70)
        assert torch.equal(layer(x), other(x))
        other.codes.zero_()
        assert not equal(layer, other)


def test_room_is_filled_from_a_state_dict(layer):
    room = QuantizedLinear(70, 40, layer.scheme)
    room.load_state_dict(layer.state_dict())
    assert equal(room, layer)
    assert not list(layer.parameters())


def test_gradients_pass_through(layer):
    x = torch.randn(5, 70, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.dequantize()))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * y @ layer.dequantize())


def test_it_says_what_it_is(layer):
    assert repr(layer).startswith("QuantizedLinear(70, 40, Scheme(bits=")


def test_training_computes_alike_with_gradients_and_without():
    """A preference's reference is computed without gradients, by the network in training."""
    layer = QuantizedLinear.from_weight(torch.randn(40, 70), Scheme(4, 32)).train()
    x = torch.randn(5, 70)
    with torch.no_grad():
        without = layer(x)
    assert torch.equal(without, layer(x.requires_grad_()))
    torch.testing.assert_close(without, x @ layer.dequantize().T)
    layer.eval()
    with torch.no_grad():
        assert not torch.equal(layer(x), without)
