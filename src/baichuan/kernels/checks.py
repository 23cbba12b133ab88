"""The sentence for a tensor that a kernel cannot take; native code itself checks nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from baichuan.errors import UsageError


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse a tensor of another shape, dtype or device.

    Raises:
        UsageError: says what it is and what it must be.
    """
    if tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.device == device:
        return
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
