"""Rounding a weight to few bits so that little is lost. Plain torch; knows no module and no layout.

int8: scale = largest magnitude / 127. int4: the 16 codes are -8..7, so the scale is signed, such
that the number of largest magnitude lies on the side of -8 (the idea of llama.cpp's Q4_0). Dividing
by exactly 8 is seldom best: of several divisors, and of the scale that fits their codes best, the
one with the least squared error is taken, group by group. A zero point of four bits would gain
about 1 % at equal stored bits (benchmarks/rounding.py), which is not worth its kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.quant.scheme import Scheme

#: Where the largest number comes to lie among the codes; beyond 8 it is cut to -8.
_DIVISORS = (5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
#: Smaller scales become 0, and their weights too: the inverse of 1e-39 would be infinite.
_LEAST = 1e-36
#: Rows at a time: bounds the memory of the float32 copies.
_ROWS = 1024


def round_weight(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Round a weight [rows, columns] of any float dtype.

    Returns:
        Codes int8 [rows, columns] and scales bfloat16 [rows, groups] ([rows, 1] with one per row).

    Raises:
        UsageError: the weight holds NaN or infinity.
    """
    parts = [_round_rows(rows.float(), scheme) for rows in torch.split(weight, _ROWS)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def _round_rows(rows: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    if not bool(rows.isfinite().all()):
        raise UsageError("The weight holds NaN or infinity, which no code stands for.")
    count, columns = rows.shape
    size = scheme.group_size or columns
    groups = F.pad(rows, (0, -columns % size)).view(count, -1, size)
    scales = _scales8(groups) if scheme.bits == 8 else _scales4(groups)
    codes = _codes(groups, scales, scheme.bits)
    return codes.view(count, -1)[:, :columns].to(torch.int8), scales.to(torch.bfloat16)


def _codes(groups: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Round to the nearest code; -128 is not used, so that products stay within 16 bits."""
    highest = 2 ** (bits - 1) - 1
    lowest = -highest if bits == 8 else -highest - 1
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
    return (groups * inverse[..., None]).round_().clamp_(lowest, highest)


def _scales8(groups: Tensor) -> Tensor:
    return _storable(groups.abs().amax(-1) / 127.0)


def _scales4(groups: Tensor) -> Tensor:
    most = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    # Errors are compared in parts of the largest, whose squares neither vanish nor overflow.
    relative = groups / torch.where(most == 0, 1.0, most)
    most = most[..., 0]
    best = torch.zeros_like(most)
    least = torch.full_like(best, float("inf"))

    def consider(scales: Tensor) -> None:
        nonlocal best, least
        step = torch.where(scales == 0, 0.0, scales / most)
        error = _codes(groups, scales, 4).mul_(step[..., None]).sub_(relative).square_().sum(-1)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)

    for divisor in _DIVISORS:
        consider(_storable(most / -divisor))
    codes = _codes(groups, best, 4)
    squares = codes.square().sum(-1)
    consider(_storable((codes * relative).sum(-1) / squares.clamp_min(1.0) * most))
    return best


def _storable(scales: Tensor) -> Tensor:
    """Give scales as they will be stored: the codes must be chosen for these."""
    return torch.where(scales.abs() < _LEAST, 0.0, scales).to(torch.bfloat16).float()
