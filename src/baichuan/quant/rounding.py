"""Rounding a weight to few bits so that little is lost. Plain torch; knows no module and no layout.

int8: scale = largest magnitude / 127. int4: the 16 codes are -8..7, so the scale is signed, such
that the number of largest magnitude lies on the side of -8 (the idea of llama.cpp's Q4_0); int3
alike, -4..3. Dividing by exactly 8 is seldom best: of several divisors, and of the scale that fits
their codes best, the one with the least squared error is taken, group by group. A zero point of
four bits would gain about 1 % at equal stored bits (benchmarks/rounding.py), which is not worth its
kernels. Where it is known how large the inputs of each column are, their errors count as much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.quant.scheme import Scheme

#: Where the largest number comes to lie among the 16 codes of int4; beyond 8 it is cut to -8.
_DIVISORS = (5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
#: Smaller scales become 0, and their weights too: the inverse of 1e-39 would be infinite.
_LEAST = 1e-36
#: Weights at a time, by device. All passes over a part stay within a CPU's second-level cache, with
#: which int4 is four times faster than from memory; a GPU wants long parts.
_CPU_PART, _GPU_PART = 2**18, 2**24


def round_weight(
    weight: Tensor, scheme: Scheme, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round a weight [rows, columns] of any float dtype to the nearest codes.

    Args:
        weight: as trained.
        scheme: bits and groups.
        importance: float32 [columns], the mean square of the inputs: what a squared error counts
            when scales of few bits are chosen; None if all count alike.

    Returns:
        Codes int8 [rows, columns] and scales bfloat16 [rows, groups] ([rows, 1] with one per row).

    Raises:
        UsageError: the weight holds NaN or infinity.
    """
    rows, columns = weight.shape
    size = scheme.group_size or columns
    codes = weight.new_empty((rows, columns), dtype=torch.int8)
    scales = weight.new_empty((rows, -(-columns // size)), dtype=torch.bfloat16)
    counts = None if importance is None else _by_groups(importance, size)
    step = max(1, (_CPU_PART if weight.device.type == "cpu" else _GPU_PART) // columns)
    for part in (slice(first, first + step) for first in range(0, rows, step)):
        wide = weight[part].float()
        padded = F.pad(wide, (0, -columns % size)) if columns % size else wide
        groups = padded.view(len(padded), -1, size)
        found = _scales(groups, scheme.bits, counts)
        rounded = _round(groups, _inverse(found), scheme.bits, torch.empty_like(groups))
        codes[part] = rounded.view_as(padded)[:, :columns]
        scales[part] = found
    return codes, scales


def _round(groups: Tensor, inverse: Tensor, bits: int, out: Tensor) -> Tensor:
    """Round to the nearest code; -128 is not used, so that products stay within 16 bits."""
    highest = 2 ** (bits - 1) - 1
    lowest = -highest if bits == 8 else -highest - 1
    return torch.mul(groups, inverse[..., None], out=out).round_().clamp_(lowest, highest)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0.0, 1.0 / scales)


def _by_groups(importance: Tensor, size: int) -> Tensor:
    """Lay importance [columns] out as [groups, size], in parts of the largest."""
    most = importance.max().clamp_min(torch.finfo(torch.float32).tiny)
    # Columns without input have a little importance, so that a group of them has a best scale too.
    return F.pad((importance / most).clamp_min(1e-6), (0, -len(importance) % size)).view(-1, size)


def _scales(groups: Tensor, bits: int, counts: Tensor | None) -> Tensor:
    """Choose the scales [rows, groups] of weights [rows, groups, size]."""
    most = _largest(groups)
    if bits == 8:
        return _storable(most.abs() / 127.0)
    unit = torch.where(most == 0, 1.0, most)
    # Errors are compared in parts of the largest, whose squares neither vanish nor overflow.
    relative = groups / unit[..., None]
    scratch = torch.empty_like(groups)

    def error(scales: Tensor) -> Tensor:
        codes = _round(groups, _inverse(scales), bits, scratch)
        squares = codes.mul_((scales / unit)[..., None]).sub_(relative).square_()
        return (squares if counts is None else squares.mul_(counts)).sum(-1)

    divisors = torch.tensor(_DIVISORS, device=groups.device).view(-1, 1, 1) * 2 ** (bits - 4)
    tried = _storable(most / -divisors)
    errors = torch.stack([error(scales) for scales in tried])
    least, index = errors.min(0, keepdim=True)
    best = tried.gather(0, index)[0]
    codes = _round(groups, _inverse(best), bits, scratch)
    counted = codes if counts is None else codes * counts
    squares = torch.linalg.vecdot(counted, codes)
    smallest = 1.0 if counts is None else torch.finfo(torch.float32).tiny
    fitted = torch.linalg.vecdot(counted, relative) / squares.clamp_min(smallest) * most
    fitted = _storable(fitted)
    return torch.where(error(fitted) < least[0], fitted, best)


def _largest(groups: Tensor) -> Tensor:
    """Give the number of largest magnitude in each group, with its sign; of equals the first."""
    high, low = groups.amax(-1), groups.amin(-1)
    if not bool((high.isfinite() & low.isfinite()).all()):
        raise UsageError("The weight holds NaN or infinity, which no code stands for.")
    most = torch.where(high >= -low, high, low)
    tied = high == -low
    if bool(tied.any()):
        equals = groups[tied]
        most[tied] = equals.gather(-1, equals.abs().argmax(-1, keepdim=True))[..., 0]
    return most


def _storable(scales: Tensor) -> Tensor:
    """Give scales as they will be stored: the codes must be chosen for these."""
    return torch.where(scales.abs() < _LEAST, 0.0, scales).to(torch.bfloat16).float()
