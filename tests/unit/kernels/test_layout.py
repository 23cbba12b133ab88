"""The bytes of format version 1: a change here makes every saved model unreadable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baichuan.kernels.layout import dequantize, pack, packed_shapes, unpack

GROUPS = st.sampled_from([32, 64, 128, 256])


@given(st.integers(1, 70), st.integers(1, 300), GROUPS, st.sampled_from([3, 4, 8]), st.booleans())
def test_unpack_undoes_pack(rows, columns, group, bits, per_row):
    highest = 2 ** (bits - 1) - 1
    codes = torch.randint(-highest - 1, highest + 1, (rows, columns), dtype=torch.int8)
    scales = torch.randn(rows, 1 if per_row else -(-columns // group)).bfloat16()
    packed = pack(codes, scales, bits, group)
    shapes = packed_shapes(rows, columns, bits, group, per_row)
    assert (tuple(packed.codes.shape), tuple(packed.scales.shape)) == shapes
    assert packed.codes.is_contiguous() and packed.scales.is_contiguous()
    again, scales_again = unpack(packed)
    assert torch.equal(again, codes) and torch.equal(scales_again, scales)


def test_bytes_of_int8():
    # Row r, column c has the code 7 r - 5 c; 2 of a block's 16 rows, 6 of a group's 32 columns.
    rows, columns = torch.arange(2)[:, None], torch.arange(6)
    codes = (7 * rows - 5 * columns).to(torch.int8)
    packed = pack(codes, torch.tensor([[1.0], [-2.0]]), 8, 32).codes
    assert packed.shape == (1, 8, 64)
    first, second = packed[0, 0].tolist(), packed[0, 1].tolist()
    # Columns 0..3 of row 0, of row 1, then of rows that are filling: code + 128.
    assert first[:12] == [128, 123, 118, 113, 135, 130, 125, 120, 128, 128, 128, 128]
    # Columns 4, 5 and filling.
    assert second[:8] == [108, 103, 128, 128, 115, 110, 128, 128]
    assert set(first[8:] + second[8:] + packed[0, 2:].flatten().tolist()) == {128}


def test_bytes_of_int4():
    # Row 0 has columns -8..2, row 1 has 7..-3; low nibbles are columns 0..3, high ones 4..7, + 8.
    codes = torch.stack([torch.arange(-8, 3), torch.arange(7, -4, -1)]).to(torch.int8)
    packed = pack(codes, torch.ones(2, 1), 4, 32).codes
    assert packed.shape == (1, 4, 64)
    assert packed[0, 0, :8].tolist() == [0x40, 0x51, 0x62, 0x73, 0xBF, 0xAE, 0x9D, 0x8C]
    assert packed[0, 1, :8].tolist() == [0x88, 0x89, 0x8A, 0x88, 0x87, 0x86, 0x85, 0x88]
    assert set(packed[0, :, 8:].flatten().tolist()) == {0x88}


def test_bytes_of_int3():
    # Row 0 has columns -4..3 four times; the nibbles of the first three chunks hold columns 0..23,
    # + 4, and their bits 3 and 7 the bits of columns 24..27 and 28..31.
    codes = (torch.arange(32) % 8 - 4).to(torch.int8)[None]
    packed = pack(codes, torch.ones(1, 1), 3, 32).codes
    assert packed.shape == (1, 3, 64)
    assert packed[0, 0, :4].tolist() == [0x40, 0x51 | 0x88, 0x62, 0x73 | 0x88]
    assert packed[0, 1, :4].tolist() == [0x40, 0x51, 0x62 | 0x88, 0x73 | 0x88]
    assert packed[0, 2, :4].tolist() == [0x40 | 0x80, 0x51 | 0x80, 0x62 | 0x80, 0x73 | 0x80]
    assert set(packed[0, :2, 4:].flatten().tolist()) == {0x44}
    assert set(packed[0, 2, 4:].tolist()) == {0x44 | 0x88}


def test_scales_lie_by_block_and_group():
    scales = torch.arange(17 * 3).view(17, 3).bfloat16()
    packed = pack(torch.zeros(17, 96, dtype=torch.int8), scales, 4, 32).scales
    assert packed.shape == (2, 3, 16) and packed.dtype == torch.bfloat16
    assert packed[0, 1].tolist() == [1.0 + 3 * row for row in range(16)]
    assert packed[1].tolist() == [[48.0 + group] + [0.0] * 15 for group in range(3)]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_dequantize_multiplies_codes_by_their_groups_scale(bits):
    codes = torch.full((2, 40), 3, dtype=torch.int8)
    packed = pack(codes, torch.tensor([[1.0, 2.0], [-0.5, 0.0]]), bits, 32)
    expected = torch.tensor([[3.0] * 32 + [6.0] * 8, [-1.5] * 32 + [0.0] * 8])
    assert torch.equal(dequantize(packed), expected)
    assert dequantize(packed, torch.float16).dtype == torch.float16
