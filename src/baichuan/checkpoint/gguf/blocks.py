"""Blocks of GGUF: from numbers to the bytes that llama.cpp reads.

Q8_0, Q4_0 and Q5_0 are rounded as llama.cpp's reference does, to the last bit. Q4_K is searched
for here: of several widths of a step, and of the lines that fit their codes best, each 32 numbers
take what has the least squared error. Source of the layouts: ggml's structures, as the package gguf
reads them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from baichuan.errors import UsageError

#: Weights at a time, so that all passes over a part stay within a processor's cache.
_PART = 2**18
BLOCK, SUPER_BLOCK = 32, 256
#: Steps of Q4_K from the least to the largest of 32 numbers; with more than 15 the ends are cut.
_STEPS = (12.5, 13.25, 14.0, 14.5, 15.0, 15.5, 16.0, 16.75)
_LARGEST_HALF = 65504.0


def encode(weight: Tensor, kind: Kind) -> Tensor:
    """Round numbers to a type.

    Args:
        weight: float [rows, columns], or [columns]; whole blocks in a row.
        kind: F32, F16, BF16, Q8_0, Q4_0, Q5_0 or Q4_K.

    Returns:
        uint8 [rows, bytes of a row].

    Raises:
        UsageError: NaN, infinity, or more than float16 holds where that is asked for.
    """
    rows = weight.shape[:-1]
    if not bool(torch.isfinite(weight).all()):
        raise UsageError("The weight holds NaN or infinity.")
    if kind in _PLAIN:
        if kind == Kind.F16 and bool((weight.abs() > _LARGEST_HALF).any()):
            raise UsageError("The weight holds numbers above 65504, which float16 does not.")
        return weight.to(_PLAIN[kind]).contiguous().view(torch.uint8)
    size, rounded = _ROUNDED[kind]
    flat = weight.reshape(-1, size)
    parts = [rounded(part.float()) for part in torch.split(flat, _PART // size)]
    return torch.cat(parts).view(*rows, -1)


def encode_codes(codes: Tensor, scales: Tensor, kind: Kind) -> Tensor:
    """Write codes and scales as they are: nothing is rounded but scales to float16.

    Scales of bfloat16 from 2^-17 up to 65504 are float16 too, without a change.

    Args:
        codes: int8 [rows, columns], whole blocks of 32 in a row.
        scales: [rows, columns / 32].
        kind: Q8_0, or Q4_0 for codes of -8..7.

    Raises:
        UsageError: a scale is not finite in float16.
    """
    rows = len(codes)
    blocks = codes.reshape(-1, BLOCK)
    stored = blocks.view(torch.uint8) if kind == Kind.Q8_0 else _nibbles((blocks + 8).byte())
    return torch.cat([_halves(scales.reshape(-1, 1)), stored], 1).view(rows, -1)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    # Halves away from zero, unlike torch's round.
    size = scaled.abs()
    floor = size.floor()
    codes = (floor + (2 * (size - floor)).floor()) * scaled.sign()
    return torch.cat([_halves(scale), codes.to(torch.int8).view(torch.uint8)], 1)


def _q4_0(x: Tensor) -> Tensor:
    scale = _largest(x) / -8
    codes = (x * _inverse(scale) + 8.5).trunc().clamp(0, 15).byte()
    return torch.cat([_halves(scale), _nibbles(codes)], 1)


def _q5_0(x: Tensor) -> Tensor:
    scale = _largest(x) / -16
    codes = (x * _inverse(scale) + 16.5).trunc().clamp(0, 31).byte()
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    high = ((codes >> 4).view(-1, 4, 8) * weights).sum(-1, dtype=torch.uint8)
    return torch.cat([_halves(scale), high, _nibbles(codes & 15)], 1)


def _q4_k(x: Tensor) -> Tensor:
    groups = x.view(-1, SUPER_BLOCK // BLOCK, BLOCK)
    step, offset = _fitted(groups)
    units = torch.stack([step, offset], -1).amax(1) / 63  # [blocks, 2]
    stored = _halves(units)
    units = units.half().float()
    inverse = _inverse(units)
    scales = (step * inverse[:, :1]).round().clamp(0, 63)
    offsets = (offset * inverse[:, 1:]).round().clamp(0, 63)
    stored_step = (scales * units[:, :1])[..., None]
    stored_offset = (offsets * units[:, 1:])[..., None]
    codes = ((groups + stored_offset) * _inverse(stored_step)).round().clamp(0, 15).byte()
    pairs = codes.view(-1, 4, 2, BLOCK)
    nibbles = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)
    return torch.cat([stored, _six_bits(scales.byte(), offsets.byte()), nibbles], 1)


def _fitted(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Give step and offset, both >= 0, with which step x code - offset is nearest to 32 numbers.

    Args:
        groups: [blocks, 8, 32].
    """
    low = groups.amin(-1).clamp(max=0)
    width = groups.amax(-1).clamp(min=0) - low
    best_step, best_offset = width / 15, -low
    least = torch.full_like(low, torch.inf)
    for steps in _STEPS:
        codes = (groups - low[..., None]) * _inverse(width / steps)[..., None]
        codes = codes.round_().clamp_(0, 15)
        for step, offset in _lines(groups, codes):
            error = (codes * step[..., None] - offset[..., None] - groups).square().sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            best_step = torch.where(better, step, best_step)
            best_offset = torch.where(better, offset, best_offset)
    return best_step, best_offset


def _lines(groups: Tensor, codes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Give the best line through (code, number) with an offset >= 0, and the best without one."""
    total, squares = codes.sum(-1), codes.square().sum(-1)
    numbers, products = groups.sum(-1), (groups * codes).sum(-1)
    spread = BLOCK * squares - total * total
    step = (BLOCK * products - total * numbers) * _inverse(spread)
    offset = (total * step - numbers) / BLOCK
    through_zero = products * _inverse(squares)
    zero = torch.zeros_like(offset)
    sound = (offset >= 0) & (step >= 0)
    return [
        (torch.where(sound, step, zero), torch.where(sound, offset, zero)),
        (through_zero.clamp(min=0), zero),
    ]


def _six_bits(scales: Tensor, offsets: Tensor) -> Tensor:
    """Pack eight scales and eight offsets of six bits [blocks, 8] into 12 bytes."""
    first = (scales[:, :4] | (scales[:, 4:] >> 4 << 6), offsets[:, :4] | (offsets[:, 4:] >> 4 << 6))
    return torch.cat([*first, (scales[:, 4:] & 15) | (offsets[:, 4:] << 4)], 1)


def _nibbles(codes: Tensor) -> Tensor:
    """Pack 32 codes of four bits: the first half in the low nibbles."""
    return codes[:, : BLOCK // 2] | (codes[:, BLOCK // 2 :] << 4)


def _halves(scales: Tensor) -> Tensor:
    """Give the bytes of scales in float16."""
    halves = scales.half()
    if not bool(torch.isfinite(halves).all()):
        raise UsageError("The weight is too large: a scale is not finite in float16.")
    return halves.view(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _largest(x: Tensor) -> Tensor:
    """Give the number of largest magnitude in each row, with its sign; of equals the first."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))


_PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
#: Numbers in a block, and from blocks of them [blocks, numbers] to bytes.
_ROUNDED: dict[Kind, tuple[int, Callable[[Tensor], Tensor]]] = {
    Kind.Q8_0: (BLOCK, _q8_0),
    Kind.Q4_0: (BLOCK, _q4_0),
    Kind.Q5_0: (BLOCK, _q5_0),
    Kind.Q4_K: (SUPER_BLOCK, _q4_k),
}
