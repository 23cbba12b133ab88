"""Products with quantized weights as functions of tensors: check, choose, call.

A CPU runs the native code (native.py) or, without it, plain torch (reference.py), to the same spec.
A GPU runs torch's own kernels (cuda.py), or multiplies by the dequantized weight: not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.kernels import gradients, native, reference
from baichuan.kernels.checks import check_tensor
from baichuan.kernels.cuda import CudaMatrix
from baichuan.kernels.layout import PackedMatrix

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
    exact: bool = False,
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
        exact: do not round x, but multiply in its dtype by the dequantized weight: the only way
            that has gradients, and what training should compute where there happen to be none.

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
        or exact
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
        check_tensor("norm.weight", norm.weight, (weight.columns,), norm.weight.dtype, x.device)
    if residual is not None:
        shape = (*x.shape[:-1], weight.rows)
        check_tensor("residual", residual, shape, x.dtype, x.device)


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
        x = gradients.rms_norm(x, norm.weight, norm.eps).to(x.dtype)
    y = gradients.multiply(x, weight)
    if up is not None:
        y = gradients.gate(y, gradients.multiply(x, up))
    return y if residual is None else y + residual


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
    if x.dtype not in native.DTYPES:  # float16: computed in float32 all the same
        wide = None if residual is None else residual.float()
        return _in_native(x.float(), weight, up, norm, wide).to(x.dtype)
    call = linear_call(x, weight, up=up, norm=norm, residual=residual)
    native.run([call])
    return call.result


def linear_call(
    x: Tensor,
    weight: PackedMatrix,
    *,
    up: PackedMatrix | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> native.LinearCall:
    """Prepare what `linear` does for native.run, unchecked: x [rows, columns] on a CPU.

    The call's attribute `result` [rows, outputs] has no content until it has run.
    """
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = x.new_empty((x.shape[0], weight.rows))
    call = native.LinearCall(
        x=x.data_ptr(),
        residual=None if residual is None else residual.data_ptr(),
        y=y.data_ptr(),
        rows=x.shape[0],
        dtype=native.DTYPES[x.dtype],
        level=native.level(),
        codes=weight.codes.data_ptr(),
        scales=weight.scales.data_ptr(),
        scale_groups=weight.scale_groups,
        columns=weight.columns,
        outputs=weight.rows,
        group=weight.group_size,
        bits=weight.bits,
    )
    norm_weight = None
    if up is not None:
        call.up_codes, call.up_scales = up.codes.data_ptr(), up.scales.data_ptr()
        call.up_bits, call.up_scale_groups = up.bits, up.scale_groups
    if norm is not None:
        norm_weight = norm.weight if norm.weight.dtype in native.DTYPES else norm.weight.float()
        norm_weight = norm_weight.contiguous()
        call.norm, call.norm_dtype = norm_weight.data_ptr(), native.DTYPES[norm_weight.dtype]
        call.eps = norm.eps
    call.result, call.holds = y, (x, residual, norm_weight, weight, up)
    return call
