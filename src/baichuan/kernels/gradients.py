"""What training computes of a layer, keeping little for the way back: norm, gate, product.

Torch by itself keeps every intermediate result: of a norm in bfloat16 two copies in float32, of a
quantized product the dequantized weight, which for all layers together is the model that would not
fit. Here the inputs are kept, and the rest is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.kernels import native
from baichuan.kernels.cuda import CudaMatrix
from baichuan.kernels.layout import BLOCK, PackedMatrix, dequantize

#: Weights that are dequantized together: 16 MB in bfloat16, which stays in the caches of a CPU and
#: is memory that malloc uses again, not new pages.
_AT_ONCE = 2**23


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of x in float32; multiply by `weight` in its own dtype."""
    if torch.is_grad_enabled():
        return cast(Tensor, _RMSNorm.apply(x, weight, eps))  # type: ignore[no-untyped-call]
    return weight * _normalized(x, _inverse_root(x, eps)).to(weight.dtype)


def gate(x: Tensor, up: Tensor) -> Tensor:
    """Give silu(x) * up."""
    if torch.is_grad_enabled():
        return cast(Tensor, _Gate.apply(x, up))  # type: ignore[no-untyped-call]
    return F.silu(x) * up


def multiply(x: Tensor, weight: PackedMatrix | CudaMatrix) -> Tensor:
    """Give x W^T for x [rows, columns], W dequantized to the dtype of x; x alone has a gradient."""
    return cast(Tensor, _Multiply.apply(x, weight))  # type: ignore[no-untyped-call]


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    mean = x.float().square().mean(-1, keepdim=True)
    # Squares that overflow make NaN, not an output of zeros: infinity times zero is NaN.
    return torch.rsqrt(mean + eps) + mean * 0.0


def _normalized(x: Tensor, inverse: Tensor) -> Tensor:
    return x.float() * inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse_root(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * _normalized(x, inverse).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normal = _normalized(x, inverse)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            products = gradient * normal.to(weight.dtype)
            of_weight = products.flatten(0, -2).sum(0, dtype=torch.float32).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            inner = gradient.float() * weight.float()
            along = (inner * normal).mean(-1, keepdim=True)
            of_x = inner.sub_(normal.mul_(along)).mul_(inverse).to(x.dtype)
        return of_x, of_weight, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(x, up)
        return F.silu(x) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, x), gradient * F.silu(x)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedMatrix | CudaMatrix) -> Tensor:
        ctx.weight = weight
        if isinstance(weight, CudaMatrix):
            return weight.multiply(x)
        parts = _row_parts(weight)
        return torch.cat([F.linear(x, dense(part, x.dtype)) for part in parts], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, dtype = ctx.weight, gradient.dtype
        if isinstance(weight, CudaMatrix):
            return gradient @ weight.dequantize(dtype), None
        # By columns, so that there is nothing to add up.
        parts = [gradient @ dense(weight, dtype, part) for part in _column_parts(weight)]
        return torch.cat(parts, dim=1), None


def _row_parts(weight: PackedMatrix) -> Iterator[PackedMatrix]:
    step = max(1, _AT_ONCE // (weight.columns * BLOCK))
    for first in range(0, len(weight.codes), step):
        codes, scales = (t[first : first + step] for t in (weight.codes, weight.scales))
        rows = min(len(codes) * BLOCK, weight.rows - first * BLOCK)
        yield PackedMatrix(codes, scales, weight.bits, weight.group_size, rows, weight.columns)


def _column_parts(weight: PackedMatrix) -> Iterator[slice]:
    groups = max(1, _AT_ONCE // (weight.rows * weight.group_size))
    step = groups * weight.group_size
    for first in range(0, weight.columns, step):
        yield slice(first, min(first + step, weight.columns))


def dense(weight: PackedMatrix, dtype: torch.dtype, columns: slice | None = None) -> Tensor:
    """Return some columns of a weight, all by default: [rows, columns of the part].

    Args:
        columns: its start is a multiple of the group size.

    Raises:
        UsageError: columns that the weight has not, or that begin within a group.
    """
    columns = slice(0, weight.columns) if columns is None else columns
    start, stop = columns.start, columns.stop
    if not 0 <= start < stop <= weight.columns or start % weight.group_size:
        raise UsageError(
            "The columns {start} to {stop} of a weight of {columns} in groups of {group} cannot "
            "be taken; they begin with a group.",
            start=start,
            stop=stop,
            columns=weight.columns,
            group=weight.group_size,
        )
    if weight.codes.device.type != "cpu" or native.chosen() == native.TORCH:
        return dequantize(weight, dtype)[:, columns]
    wide = dtype if dtype in native.DTYPES else torch.float32
    y = torch.empty((weight.rows, columns.stop - columns.start), dtype=wide)
    call = native.DequantizeCall(
        codes=weight.codes.data_ptr(),
        scales=weight.scales.data_ptr(),
        y=y.data_ptr(),
        rows=weight.rows,
        columns=-(-weight.columns // weight.group_size) * weight.group_size,
        first=columns.start,
        count=y.shape[1],
        group=weight.group_size,
        bits=weight.bits,
        scale_groups=weight.scale_groups,
        dtype=native.DTYPES[wide],
    )
    native.dequantize(call)
    return y.to(dtype)
