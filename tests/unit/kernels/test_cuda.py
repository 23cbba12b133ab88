"""What torch's CUDA kernels are handed: codes, scales and zeros mean what the weight means.

No GPU is needed. The CPU has the same operators, but for the order of int4 codes; that order is
written down here a second time, thread by thread, and stands in for the operator that makes it.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.test_ops import random_matrix
from torch._subclasses.fake_tensor import FakeTensorMode

from baichuan.kernels import cuda, ops
from baichuan.kernels.layout import dequantize, unpack
from baichuan.kernels.ops import Norm
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.scheme import Scheme

OPS = torch.ops.aten
BF16 = torch.bfloat16


def tiled(stored, inner):
    """Do what `_convert_weight_to_int4pack` does on a GPU: lane by lane, as its threads do."""
    rows, half = stored.shape
    spans = half * 2 // (16 * inner)
    out = torch.zeros(rows // 8, spans, 32, inner // 2, dtype=torch.int64)
    for span in range(spans):
        for lane in range(32):
            for word in range(inner // 2):
                first = (span * inner + 2 * word) * 8 + lane % 4
                for place, byte in enumerate(first + shift for shift in (0, 4, 8, 12)):
                    pair = stored[lane // 4 :: 8, byte].long()
                    out[:, span, lane, word] |= (pair >> 4) << 4 * place
                    out[:, span, lane, word] |= (pair & 15) << 4 * place + 16
    return out.to(torch.uint32).view(torch.int32)


def int4_product(x, tiles, group_size, operand):
    """Do what `_weight_int4pack_mm` does on a GPU, by the CPU's operator of the same meaning."""
    assert x.dtype == operand.dtype == BF16 and tiles.dtype == torch.int32
    assert x.is_contiguous() and tiles.is_contiguous() and operand.is_contiguous()
    codes = (cuda.untiled(tiles) + 8).to(torch.int32)
    packed = OPS._convert_weight_to_int4pack_for_cpu(codes, 2)
    return OPS._weight_int4pack_mm_for_cpu(x, packed, group_size, operand)


def int8_product(x, codes, operand):
    """Do what `_weight_int8pack_mm` does on a GPU, which takes float32 scales for any input."""
    assert x.is_contiguous() and codes.is_contiguous() and operand.dtype == torch.float32
    outputs, columns = codes.shape  # the CPU's reads past the end of any but whole blocks
    x = F.pad(x, (0, -columns % 64))
    codes = F.pad(codes, (0, -columns % 64, 0, -outputs % 16))
    operand = F.pad(operand, (0, -outputs % 16)).to(x.dtype)
    return OPS._weight_int8pack_mm(x, codes, operand)[:, :outputs]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let the CPU pass for a GPU with these kernels."""
    operators = {
        "_convert_weight_to_int4pack": tiled,
        "_weight_int4pack_mm": int4_product,
        "_weight_int8pack_mm": int8_product,
    }
    monkeypatch.setattr(cuda, "_OPS", SimpleNamespace(**operators))
    monkeypatch.setattr(
        cuda,
        "available",
        lambda matrix, dtype: matrix.scale_groups == 1 if matrix.bits == 8 else dtype == BF16,
    )


def close(y, x, weight):
    """Compare with x W^T in float32: what bfloat16 weights and sums may change."""
    dense = dequantize(weight)
    size = x.float().abs() @ dense.abs().T
    return ((y.float() - x.float() @ dense.T).abs() <= 2**-7 * size + 1e-6).all()


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 300))
GROUPS = st.sampled_from([32, 64, 128, 256])


@settings(max_examples=60)
@given(SHAPES, GROUPS, st.booleans(), st.integers(0, 2**20))
def test_int4_codes_scales_and_zeros_are_those_of_the_weight(shape, group, per_row, seed):
    torch.manual_seed(seed)
    count, outputs, columns = shape
    weight = random_matrix(outputs, columns, 4, group, per_row)
    codes, scales = unpack(weight)
    stored, _ = cuda.tile_arguments(codes, group)
    operand = cuda.scales_and_zeros(scales, stored.shape[1] * 2 // group)
    wide = torch.stack([stored >> 4, stored & 15], dim=-1).flatten(1).to(torch.int32)
    packed = OPS._convert_weight_to_int4pack_for_cpu(wide, 2)
    x = torch.randn(count, columns).to(BF16)
    filled = F.pad(x, (0, wide.shape[1] - columns))
    y = OPS._weight_int4pack_mm_for_cpu(filled, packed, group, operand)
    assert close(y[:, :outputs], x, weight)


@settings(max_examples=60)
@given(SHAPES, GROUPS)
def test_the_gpus_operators_take_what_they_get(shape, group):
    count, outputs, columns = shape
    weight = random_matrix(outputs, columns, 4, group)
    codes, scales = unpack(weight)
    stored, inner = cuda.tile_arguments(codes, group)
    operand = cuda.scales_and_zeros(scales, stored.shape[1] * 2 // group)
    filled = stored.shape[1] * 2
    with FakeTensorMode():

        def fake(*shape, dtype=BF16):
            return torch.empty(shape, dtype=dtype, device="cuda")

        tiles = OPS._convert_weight_to_int4pack(fake(*stored.shape, dtype=stored.dtype), inner)
        y = OPS._weight_int4pack_mm(fake(count, filled), tiles, group, fake(*operand.shape))
        assert (y.shape, y.dtype, y.device.type) == ((count, len(stored)), BF16, "cuda")
        rows = fake(outputs, columns, dtype=torch.int8)
        y = OPS._weight_int8pack_mm(fake(count, columns), rows, fake(outputs, dtype=torch.float32))
        assert (y.shape, y.dtype) == ((count, outputs), BF16)
    # What the kernels ask for, and their fakes do not.
    assert tiles.shape == (len(stored) // 8, filled // (16 * inner), 32, inner // 2)
    assert filled % (16 * inner) == filled % group == 0 and inner in (2, 4, 8)
    assert operand.shape == (filled // group, len(stored), 2)
    assert stored.is_contiguous() and operand.is_contiguous()


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_the_way_back_from_tiles(group):
    codes = torch.randint(-8, 8, (32, 512), dtype=torch.int8)
    stored, inner = cuda.tile_arguments(codes, group)
    for tiles in (tiled(stored, n) for n in (8, 4, 2)):
        assert torch.equal(cuda.untiled(tiles), codes)
    assert inner == 8


MATRICES = [(4, 64, False), (4, 128, True), (8, 128, True)]


@pytest.mark.parametrize(("bits", "group", "per_row"), MATRICES)
@pytest.mark.parametrize("count", [1, 7, 33, 300])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_products_and_gradients(on_a_gpu, bits, group, per_row, count, dtype):
    weight, up = (random_matrix(37, 150, bits, group, per_row) for _ in range(2))
    repacked = cuda.adopted(weight, BF16)
    assert torch.equal(repacked.packed().codes, weight.codes)
    assert torch.equal(repacked.packed().scales, weight.scales)
    for kind in (torch.float32, BF16, torch.float16):
        assert torch.equal(repacked.dequantize(kind), dequantize(weight, kind))
    x = torch.randn(count, 150).to(dtype).requires_grad_()
    y = ops.linear(x, repacked)
    assert y.dtype == dtype and close(y, x, weight)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(y) @ dequantize(weight, dtype))
    residual, norm = torch.randn(count, 37).to(dtype), Norm(torch.rand(150), 1e-6)
    fused = ops.linear(x, repacked, up=cuda.adopted(up, BF16), norm=norm, residual=residual)
    inner = F.rms_norm(x.float(), (150,), norm.weight, 1e-6)
    gate, other = (inner @ dequantize(matrix).T for matrix in (weight, up))
    expected = F.silu(gate) * other + residual
    assert (fused - expected).norm() < 0.02 * expected.norm()


def test_what_has_no_kernel_stays_as_it_is(on_a_gpu, monkeypatch):
    assert cuda.adopted(random_matrix(32, 256, 8, 64), BF16) is None
    assert cuda.adopted(random_matrix(32, 256, 4, 64), torch.float16) is None
    # An order of codes that is not the one known: the way back would lose the weight.
    known = cuda.untiled
    monkeypatch.setattr(cuda, "untiled", lambda tiles: known(tiles).roll(1, 1))
    assert cuda.adopted(random_matrix(32, 256, 4, 64), BF16) is None


def test_on_a_cpu_nothing_is_repacked():
    assert cuda.adopted(random_matrix(32, 256), BF16) is None


SCHEMES = [Scheme(4, 128), Scheme(4, 32), Scheme(4, None), Scheme(8, None)]


@pytest.fixture(params=SCHEMES, ids=str)
def layers(request, on_a_gpu):
    """Give one layer twice: as it was made, and repacked by a product."""
    layer = QuantizedLinear.from_weight(torch.randn(40, 300), request.param)
    repacked = copy.deepcopy(layer)
    with torch.inference_mode():
        repacked(torch.randn(2, 300, dtype=BF16))
    assert repacked.codes is None and repacked._repacked is not None
    return layer, repacked


def equal(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second) == ["codes", "scales"]
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_repacked_layer_is_saved_as_it_was(layers):
    layer, repacked = layers
    assert equal(repacked, layer)
    assert repacked.codes is None  # saving has not undone it
    assert torch.equal(repacked.dequantize(), layer.dequantize())
    assert equal(copy.deepcopy(repacked), layer)


def test_a_repacked_layer_moves_and_is_cast_and_repacked_anew(layers):
    layer, repacked = layers
    x = torch.randn(3, 300, dtype=BF16)
    before = repacked(x)
    for move in ("cpu", "half", "float"):
        getattr(repacked, move)()
        assert torch.equal(repacked.codes, layer.codes) and repacked._repacked is None
        assert torch.equal(repacked(x), before) and repacked.codes is None
    assert repacked.to("meta").codes.device.type == "meta"


def test_a_repacked_layer_takes_other_weights(layers):
    layer, repacked = layers
    x = torch.randn(3, 300, dtype=BF16)
    other = QuantizedLinear.from_weight(torch.randn(40, 300), layer.scheme)
    repacked.load_state_dict(other.state_dict())
    assert equal(repacked, other)
    repacked(x)
    repacked.codes = layer.codes  # as loaders set buffers
    repacked.scales = layer.scales
    assert equal(repacked, layer)
    torch.testing.assert_close(repacked(x), layer(x))


def test_a_layer_repacked_in_inference_trains(layers):
    _, repacked = layers
    x = torch.randn(3, 300, dtype=BF16, requires_grad=True)
    repacked(x).sum().backward()
    assert x.grad.abs().sum() > 0
