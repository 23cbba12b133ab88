"""Blocks against the package gguf: the bytes of its quantizer, the meaning that it reads."""

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from baichuan.checkpoint.gguf.blocks import encode, encode_codes
from baichuan.errors import UsageError


@st.composite
def weights(draw, columns=64):
    """Rows of very different sizes, some of zeros, some on a coarse grid full of ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = torch.randn(draw(st.integers(1, 9)), columns, generator=generator)
    grid = draw(st.sampled_from([0.0, 0.25, 1.0]))
    rows = (rows / grid).round() * grid if grid else rows
    exponents = torch.randint(-20, 12, (len(rows), 1), generator=generator)
    return rows * draw(st.sampled_from([0.0, 1.0, -1.0])) * 2.0**exponents


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.BF16, Kind.F32])
@given(weight=weights())
def test_the_bytes_are_those_of_the_reference(kind, weight):
    expected = quantize(weight.numpy(), kind).view(np.uint8).reshape(len(weight), -1)
    assert np.array_equal(encode(weight, kind).numpy(), expected)


@given(weight=weights(columns=512))
def test_q4_k_means_numbers_near_the_weights(weight):
    found = dequantize(encode(weight, Kind.Q4_K).numpy(), Kind.Q4_K)
    assert found.shape == weight.shape
    error = np.abs(found - weight.numpy()).reshape(-1, 256).max(1)
    groups = weight.reshape(-1, 8, 32)
    width = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)).amax(1).numpy()
    # Half a step, the step's and the offset's rounding to six bits, and cut ends; tiny scales
    # are subnormal in float16.
    assert (error <= 0.13 * width + 5e-5).all()


def test_q4_k_loses_less_than_q4_0():
    weight = torch.randn(64, 1024)
    numbers = weight.numpy()
    errors = {
        kind: np.square(dequantize(encode(weight, kind).numpy(), kind) - numbers).mean()
        for kind in (Kind.Q4_0, Kind.Q4_K)
    }
    assert errors[Kind.Q4_K] < 0.75 * errors[Kind.Q4_0]


def test_q4_k_gives_what_lies_on_its_grid_exactly():
    codes = torch.randint(0, 16, (4, 32, 32)).float()
    codes[..., 0], codes[..., 1] = 0, 15
    scales = torch.randint(1, 64, (4, 32, 1)).float()
    scales[:, ::8] = 63
    weight = (codes * scales * 2**-12).view(4, 1024)
    assert np.array_equal(dequantize(encode(weight, Kind.Q4_K).numpy(), Kind.Q4_K), weight.numpy())


@pytest.mark.parametrize(("kind", "least"), [(Kind.Q8_0, -127), (Kind.Q4_0, -8)])
@pytest.mark.parametrize("sign", [1, -1])
def test_codes_stay_as_they_are(kind, least, sign):
    codes = torch.randint(least, -least, (24, 96), dtype=torch.int8)
    scales = sign * torch.rand(24, 3).bfloat16() * 0.02 + sign * 2**-17
    scales = scales.bfloat16()
    expected = codes.float() * scales.float().repeat_interleave(32, 1)
    assert np.array_equal(
        dequantize(encode_codes(codes, scales, kind).numpy(), kind), expected.numpy()
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q4_K])
def test_what_is_no_number_is_refused(kind, value):
    weight = torch.zeros(2, 256)
    weight[1, 3] = value
    with pytest.raises(UsageError, match="NaN or infinity"):
        encode(weight, kind)


def test_what_float16_does_not_hold_is_refused():
    large = torch.full((1, 256), 7e4)
    with pytest.raises(UsageError, match="above 65504"):
        encode(large, Kind.F16)
    with pytest.raises(UsageError, match="not finite in float16"):
        encode(large * torch.arange(256) * 1e6, Kind.Q4_K)
    with pytest.raises(UsageError, match="not finite in float16"):
        encode_codes(torch.ones(1, 32, dtype=torch.int8), torch.tensor([[1e6]]), Kind.Q8_0)
    with pytest.raises(UsageError, match="not finite in float16"):
        encode(large * 1e6, Kind.Q8_0)
