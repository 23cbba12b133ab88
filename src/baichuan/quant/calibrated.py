"""Rounding a weight so that its product with typical inputs changes little. Plain torch.

The loss is tr(D M D^T), for the change D of the weight and the mean M of x x^T over inputs x: the
mean squared change of the product. Columns are rounded one after the other, those with the largest
inputs first; what a column's rounding changes is made up for by those that are still to come (GPTQ,
Frantar et al. 2022, arXiv:2210.17323). Scales are chosen before, so that the order of columns need
not be stored, and weigh errors by the inputs. Then, once, each scale is fitted to its codes and
each code moved to where the loss is least with all others as they are (coordinate descent).
"""

from __future__ import annotations

import torch
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.quant.rounding import round_weight
from baichuan.quant.scheme import Scheme

#: Added to the diagonal of M, in parts of its mean, for inputs that the texts did not show; tenfold
#: where M cannot be inverted with it.
_DAMPINGS = (0.01, 0.1, 1.0)
#: Columns whose changes reach the others in one product of matrices.
_AT_ONCE = 128


class _Grid:
    """The numbers that codes can stand for, column after column.

    Attributes:
        scales: float32 [columns, rows].
    """

    def __init__(self, scales: Tensor, scheme: Scheme, columns: int) -> None:
        """Take bfloat16 scales [rows, groups]."""
        self.size = scheme.group_size or columns
        self.most = 2 ** (scheme.bits - 1) - 1
        self.least = -self.most if scheme.bits == 8 else -self.most - 1
        self.scales = scales.float().repeat_interleave(self.size, 1)[:, :columns].T.contiguous()

    def codes(self, column: int | slice, values: Tensor) -> Tensor:
        """Give the nearest codes of values [rows] or [columns, rows], as floats."""
        scales = self.scales[column]
        inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
        return (values * inverse).round_().clamp_(self.least, self.most)

    def nearest(self, column: int, values: Tensor) -> Tensor:
        """Round values [rows] to the grid of a column."""
        return self.codes(column, values).mul_(self.scales[column])


def round_calibrated(weight: Tensor, moment: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Round a weight [rows, columns] of any float dtype for inputs of a known second moment.

    Args:
        weight: as trained.
        moment: float32 [columns, columns], the mean of x x^T; overwritten.
        scheme: bits and groups.

    Returns:
        Codes int8 [rows, columns] and scales bfloat16 [rows, groups] ([rows, 1] with one per row).

    Raises:
        UsageError: weight or moment hold NaN or infinity.
    """
    if not bool(moment.diagonal().isfinite().all()):
        raise UsageError(
            "The inputs of a layer became NaN or infinite on the calibration texts; the weights "
            "before it are damaged, or the texts are no text."
        )
    _, scales = round_weight(weight, scheme, moment.diagonal())
    wanted = weight.float().T.contiguous()
    grid = _Grid(scales, scheme, len(wanted))
    rounded = _compensated(wanted, moment, grid)  # from here on, the moment is damped
    change = moment @ (rounded - wanted)
    _fit_scales(rounded, change, moment, grid)
    _descend(rounded, change, moment, grid)
    codes = grid.codes(slice(None), rounded).to(torch.int8)
    return codes.T.contiguous(), grid.scales[:: grid.size].T.to(torch.bfloat16).contiguous()


def _compensated(wanted: Tensor, moment: Tensor, grid: _Grid) -> Tensor:
    """Round [columns, rows] column after column, the rest making up for each change.

    `moment` is damped in place.
    """
    order = moment.diagonal().argsort(descending=True)
    factor = _inverse_factor(moment, order)
    left = wanted[order]
    rounded = torch.empty_like(left)
    columns = order.tolist()
    for first in range(0, len(columns), _AT_ONCE):
        last = min(first + _AT_ONCE, len(columns))
        errors = torch.empty_like(left[first:last])
        for i in range(first, last):
            rounded[i] = grid.nearest(columns[i], left[i])
            errors[i - first] = (left[i] - rounded[i]) / factor[i, i]
            left[i + 1 : last].addr_(factor[i, i + 1 : last], errors[i - first], alpha=-1)
        left[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    left[order] = rounded
    return left


def _inverse_factor(moment: Tensor, order: Tensor) -> Tensor:
    """Give upper triangular U with U^T U the inverse of the damped moment in an order."""
    diagonal = moment.diagonal()
    mean = float(diagonal.mean()) or 1.0
    for damping in _DAMPINGS:
        diagonal.add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(moment[order][:, order])
        if int(failed) == 0:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if int(failed) == 0:
            factor: Tensor = upper
            return factor
    raise UsageError("The inputs of a layer on the calibration texts are too odd to calibrate by.")


def _fit_scales(rounded: Tensor, change: Tensor, moment: Tensor, grid: _Grid) -> None:
    """Fit each group's scale to its codes; `change` is moment @ (rounded - wanted), kept so."""
    for first in range(0, len(rounded), grid.size):
        group = slice(first, min(first + grid.size, len(rounded)))
        codes = grid.codes(group, rounded[group])
        curvature = (codes * (moment[group, group] @ codes)).sum(0).clamp_min(1e-30)
        old = grid.scales[first]
        new = (old - (codes * change[group]).sum(0) / curvature).to(torch.bfloat16).float()
        step = codes * torch.where(new * old > 0, new - old, 0.0)
        grid.scales[group] = torch.where(new * old > 0, new, old)
        rounded[group] += step
        change.addmm_(moment[:, group], step)


def _descend(rounded: Tensor, change: Tensor, moment: Tensor, grid: _Grid) -> None:
    """Move each code to where the loss is least with all others as they are."""
    for first in range(0, len(rounded), _AT_ONCE):
        last = min(first + _AT_ONCE, len(rounded))
        steps = torch.empty_like(rounded[first:last])
        for i in range(first, last):
            best = grid.nearest(i, rounded[i] - change[i] / moment[i, i])
            steps[i - first] = best - rounded[i]
            rounded[i] = best
            change[i + 1 : last].addr_(moment[i, i + 1 : last], steps[i - first])
        change[last:].addmm_(moment[last:, first:last], steps)
