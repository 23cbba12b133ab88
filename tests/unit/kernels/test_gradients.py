"""Norm, gate and quantized product of training against torch's own derivatives."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.kernels.test_ops import DTYPES, random_matrix
from torch.autograd.graph import saved_tensors_hooks

from baichuan.kernels import gradients, native
from baichuan.kernels.layout import dequantize
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.scheme import Scheme


def plain_norm(x, weight, eps):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(
        weight.dtype
    )


def results(function, tensors, *rest):
    """What a function gives, and the gradient of each tensor that wants one."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    y = function(*leaves, *rest)
    torch.manual_seed(3)
    y.backward(torch.randn_like(y))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)]


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_norm(of_x, of_weight, trained):
    x, weight = torch.randn(2, 9, 40).to(of_x), torch.rand(40).to(of_weight)
    tensors = [t.requires_grad_(wanted) for t, wanted in zip((x, weight), trained, strict=True)]
    ours = results(gradients.rms_norm, tensors, 1e-6)
    torch.testing.assert_close(ours[0], plain_norm(*tensors, 1e-6), rtol=0, atol=0)
    # In float32 throughout: torch rounds what it hands on to the dtype of the weight.
    exact = results(
        plain_norm, [t.detach().float().requires_grad_(t.requires_grad) for t in tensors], 1e-6
    )
    slack = {torch.float32: 1e-6, torch.bfloat16: 2**-6}
    for a, b in zip(ours[1:], exact[1:], strict=True):
        loose = max(slack[of_x], slack[of_weight])
        torch.testing.assert_close(a.float(), b, rtol=loose, atol=loose * b.abs().max().item())
    with torch.no_grad():
        assert torch.equal(gradients.rms_norm(*tensors, 1e-6), ours[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype):
    tensors = [torch.randn(3, 17, dtype=dtype).requires_grad_() for _ in range(2)]
    plain = results(lambda x, up: F.silu(x) * up, tensors)
    for a, b in zip(results(gradients.gate, tensors), plain, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: gradients.rms_norm(x, torch.ones(64, dtype=x.dtype), 1e-6), 2 * 512 * 64),
        (lambda x: gradients.gate(x, x), 4 * 512 * 64),
        (lambda x: gradients.multiply(x, random_matrix(80, 64)), 0),
    ],
)
def test_only_inputs_are_kept(function, wanted):
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        function(torch.randn(512, 64, dtype=torch.bfloat16).requires_grad_())
    # Beside them, a norm keeps one number a row and its weight.
    assert wanted <= sum(kept) <= wanted + 4 * 512 + 2 * 64


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    group=st.sampled_from([32, 64, 128, 256]),
    bits=st.sampled_from([3, 4, 8]),
    per_row=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_dense_is_the_dequantized_weight(rows, columns, group, bits, per_row, dtype, data):
    matrix = random_matrix(rows, columns, bits, group, per_row)
    whole = dequantize(matrix, dtype)
    assert torch.equal(gradients.dense(matrix, dtype), whole)
    start = data.draw(st.integers(0, (columns - 1) // group)) * group
    part = slice(start, data.draw(st.integers(start + 1, columns)))
    assert torch.equal(gradients.dense(matrix, dtype, part), whole[:, part])


@pytest.mark.parametrize("name", [native.TORCH, native.available()[-1]])
@pytest.mark.parametrize("at_once", [1, 40 * 100, 2**23])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_product_in_parts(monkeypatch, name, at_once, bits):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    monkeypatch.setattr(gradients, "_AT_ONCE", at_once)
    matrix = random_matrix(75, 200, bits)
    x = torch.randn(6, 200).requires_grad_()
    exact = results(lambda x: F.linear(x, dequantize(matrix)), [x])
    for a, b in zip(results(gradients.multiply, [x], matrix), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_training_rounds_no_activation():
    layer = QuantizedLinear.from_weight(torch.randn(24, 128), Scheme(4, 64))
    x = torch.randn(5, 128)
    exact = F.linear(x, layer.dequantize())
    torch.testing.assert_close(layer(x), exact)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), exact)
        assert not torch.allclose(layer.eval()(x), exact, rtol=1e-4)
