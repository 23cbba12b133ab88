"""The kernels as functions of tensors: check, choose, call. All that the rest of the package sees.

A CPU runs the native code (native.py) or, without it, plain torch (reference.py), to the same spec.
A GPU runs torch's own kernels (cuda.py), or multiplies by the dequantized weight: not measured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.kernels import native, reference
from baichuan.kernels.cuda import CudaMatrix
from baichuan.kernels.layout import PackedMatrix, dequantize

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
Weight = PackedMatrix | CudaMatrix


@dataclass(frozen=True)
class Norm:
    """An RMS norm that the input of a linear layer goes through: weight [columns], eps."""

    weight: Tensor
    eps: float


def linear(
    x: Tensor,
    weight: Weight,
    *,
    up: Weight | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Multiply by a quantized weight, with what stands before and behind it in a decoder layer.

    y = norm(x) W^T, or silu(norm(x) W^T) * (norm(x) U^T) with a second weight `up`; plus
    `residual`. Weights are read once, whatever the number of rows. Everything between input and
    output is float32; on a CPU the input of the products is rounded to int8 (reference.py). A row's
    result is the same, to the last bit, whatever other rows are in the batch.

    Args:
        x: [..., columns], float32, bfloat16 or float16.
        weight, up: [outputs, columns] each.
        residual: [..., outputs] in the dtype of x.

    Returns:
        [..., outputs] in the dtype of x.

    Raises:
        UsageError: shapes, dtypes or devices that do not fit each other.
    """
    _check(x, weight, up, norm, residual)
    rows = x.reshape(-1, weight.columns)
    flat = None if residual is None else residual.reshape(-1, weight.rows)
    if (
        isinstance(weight, CudaMatrix)
        or isinstance(up, CudaMatrix)
        or x.device.type != "cpu"
        or _needs_gradients(x, norm, residual)
    ):
        y = _dequantized(rows, weight, up, norm, flat)
    elif native.chosen() == native.TORCH:
        y = _in_torch(rows, weight, up, norm, flat)
    else:
        y = _in_native(rows, weight, up, norm, flat)
    return y.view(*x.shape[:-1], weight.rows)


def _check(
    x: Tensor,
    weight: Weight,
    up: Weight | None,
    norm: Norm | None,
    residual: Tensor | None,
) -> None:
    if not x.is_floating_point() or x.shape[-1:] != (weight.columns,):
        raise UsageError(
            "The input is {dtype} {shape}; this weight takes floats [..., {columns}].",
            dtype=x.dtype,
            shape=list(x.shape),
            columns=weight.columns,
        )
    if weight.codes.device != x.device:
        raise UsageError(
            "The input is on {device}, the weight on {other}; move one of them.",
            device=x.device,
            other=weight.codes.device,
        )
    if up is not None and not up.matches(weight):
        raise UsageError(
            "Both weights of a gated layer need one shape, one group size and one device."
        )
    if norm is not None:
        _check_tensor("norm.weight", norm.weight, (weight.columns,), norm.weight.dtype, x.device)
    if residual is not None:
        shape = (*x.shape[:-1], weight.rows)
        _check_tensor("residual", residual, shape, x.dtype, x.device)


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise UsageError(
            "{name} is {dtype} {shape} on {device}; it must be {right_dtype} {right_shape} on "
            "{right_device}.",
            name=name,
            dtype=tensor.dtype,
            shape=list(tensor.shape),
            device=tensor.device,
            right_dtype=dtype,
            right_shape=list(shape),
            right_device=device,
        )


def _needs_gradients(x: Tensor, norm: Norm | None, residual: Tensor | None) -> bool:
    tensors = (x, residual, None if norm is None else norm.weight)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _dequantized(
    x: Tensor,
    weight: Weight,
    up: Weight | None,
    norm: Norm | None,
    residual: Tensor | None,
) -> Tensor:
    """Multiply by the dequantized weights in the dtype of x; differentiable."""
    if norm is not None:
        x = reference.rms_norm(x.float(), norm.weight, norm.eps).to(x.dtype)
    y = _multiply(x, weight)
    if up is not None:
        y = F.silu(y) * _multiply(x, up)
    return y if residual is None else y + residual


class _Multiply(torch.autograd.Function):
    """x W^T. Saved for the way back, dequantized weights of all layers would fill the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        if isinstance(weight, CudaMatrix):
            return weight.multiply(x)
        return F.linear(x, dequantize(weight, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, dtype = ctx.weight, gradient.dtype
        repacked = isinstance(weight, CudaMatrix)
        dense = weight.dequantize(dtype) if repacked else dequantize(weight, dtype)
        return gradient @ dense, None


def _multiply(x: Tensor, weight: Weight) -> Tensor:
    return cast(Tensor, _Multiply.apply(x, weight))  # type: ignore[no-untyped-call]


def _in_torch(
    x: Tensor,
    weight: PackedMatrix,
    up: PackedMatrix | None,
    norm: Norm | None,
    residual: Tensor | None,
) -> Tensor:
    wide = x.float()
    if norm is not None:
        wide = reference.rms_norm(wide, norm.weight, norm.eps)
    y = reference.linear(wide, weight)
    if up is not None:
        y = reference.silu(y) * reference.linear(wide, up)
    return (y if residual is None else y + residual.float()).to(x.dtype)


def _in_native(
    x: Tensor,
    weight: PackedMatrix,
    up: PackedMatrix | None,
    norm: Norm | None,
    residual: Tensor | None,
) -> Tensor:
    if x.dtype not in _DTYPES:  # float16: computed in float32 all the same
        wide = None if residual is None else residual.float()
        return _in_native(x.float(), weight, up, norm, wide).to(x.dtype)
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = x.new_empty((x.shape[0], weight.rows))
    call = native.LinearCall(
        x=x.data_ptr(),
        residual=None if residual is None else residual.data_ptr(),
        y=y.data_ptr(),
        rows=x.shape[0],
        dtype=_DTYPES[x.dtype],
        level=native.level(),
        codes=weight.codes.data_ptr(),
        scales=weight.scales.data_ptr(),
        scale_groups=weight.scale_groups,
        columns=weight.columns,
        outputs=weight.rows,
        group=weight.group_size,
        bits=weight.bits,
    )
    if up is not None:
        call.up_codes, call.up_scales = up.codes.data_ptr(), up.scales.data_ptr()
        call.up_bits, call.up_scale_groups = up.bits, up.scale_groups
    if norm is not None:
        norm_weight = norm.weight if norm.weight.dtype in _DTYPES else norm.weight.float()
        call.norm, call.norm_dtype = norm_weight.data_ptr(), _DTYPES[norm_weight.dtype]
        call.eps = norm.eps
    _library().baichuan_linear(ctypes.byref(call))
    return y


def attend(query: Tensor, caches: Sequence[tuple[Tensor, Tensor]], slopes: Tensor | None) -> Tensor:
    """Attend from the newest position of each of several sequences to all that its cache holds.

    Args:
        query: [sequences, heads, width].
        caches: per sequence (keys, values), each [heads, positions, width] in the dtype of query,
            contiguous but for room behind the positions.
        slopes: float32 [heads], ALiBi's; None for none.

    Returns:
        [sequences, heads, width] in the dtype of query.

    Raises:
        UsageError: shapes, dtypes, devices or strides that do not fit each other.
    """
    _check_attend(query, caches, slopes)
    fits = query.device.type == "cpu" and query.dtype in _DTYPES
    if not fits or native.chosen() == native.TORCH:
        rows = zip(query, caches, strict=True)
        return torch.stack([reference.attend(q, k, v, slopes) for q, (k, v) in rows])
    query = query.contiguous()
    out = torch.empty_like(query)
    count, heads, width = query.shape
    pointers, numbers = ctypes.c_void_p * count, ctypes.c_int64 * count
    call = native.AttendCall(
        query=query.data_ptr(),
        out=out.data_ptr(),
        keys=ctypes.addressof(keys := pointers(*(k.data_ptr() for k, _ in caches))),
        values=ctypes.addressof(values := pointers(*(v.data_ptr() for _, v in caches))),
        counts=ctypes.addressof(counts := numbers(*(k.shape[1] for k, _ in caches))),
        capacities=ctypes.addressof(room := numbers(*(k.stride(0) // width for k, _ in caches))),
        slopes=_address(slopes := None if slopes is None else slopes.contiguous()),
        sequences=count,
        heads=heads,
        width=width,
        dtype=_DTYPES[query.dtype],
        level=native.level(),
    )
    _library().baichuan_attend(ctypes.byref(call))
    del keys, values, counts, room  # the call has read them
    return out


def _check_attend(
    query: Tensor, caches: Sequence[tuple[Tensor, Tensor]], slopes: Tensor | None
) -> None:
    if query.ndim != 3 or len(caches) != len(query):
        raise UsageError(
            "The query is {shape} for {count} caches; it must be [sequences, heads, width], a "
            "cache for each sequence.",
            shape=list(query.shape),
            count=len(caches),
        )
    _, heads, width = query.shape
    for key, value in caches:
        shape = (heads, key.shape[1] if key.ndim == 3 else 1, width)
        _check_tensor("keys", key, shape, query.dtype, query.device)
        _check_tensor("values", value, shape, query.dtype, query.device)
        regular = key.stride()[1:] == (width, 1) and key.stride(0) % width == 0
        if key.stride() != value.stride() or not regular or shape[1] < 1:
            raise UsageError(
                "A cache has {positions} positions and strides {keys}, {values}; it must hold a "
                "position, and keys and values must lie alike, each head's positions one behind "
                "the other.",
                positions=shape[1],
                keys=key.stride(),
                values=value.stride(),
            )
    if slopes is not None:
        _check_tensor("slopes", slopes, (heads,), torch.float32, query.device)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _library() -> ctypes.CDLL:
    loaded = native.library()
    assert loaded is not None, "chosen() gives native names only where there is a library"
    return loaded
