"""A linear layer together with the norm before it and the sum behind it.

Quantized layers compute all of it in one pass over their weights; any other layer (plain, or
wrapped by an adapter) is computed step by step, and so is one with hooks: accelerate's offloading
brings a module's weights to its device only while that module itself is called. So network.py is
written once and knows no bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from baichuan.kernels import gradients, ops
from baichuan.quant.linear import QuantizedLinear, is_hooked


class RMSNorm(Protocol):
    """What is asked of a norm: its weight [columns], its eps, and to be called."""

    weight: nn.Parameter
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        ...


def normalized(
    norm: nn.Module, linears: Sequence[nn.Module], x: Tensor
) -> tuple[Tensor, ops.Norm | None]:
    """Apply a norm, or leave it to the linear layers behind it if all of them can.

    Returns:
        norm(x) and None; or x and what `project` and `gated` are to compute.
    """
    if all(isinstance(linear, QuantizedLinear) for linear in linears) and not is_hooked(norm):
        rms_norm = cast(RMSNorm, norm)
        return x, ops.Norm(rms_norm.weight, rms_norm.eps)
    return cast(Tensor, norm(x)), None


def project(
    linear: nn.Module, x: Tensor, *, norm: ops.Norm | None = None, residual: Tensor | None = None
) -> Tensor:
    """Return residual + linear(norm(x)), for x [..., columns]; a norm is for quantized layers."""
    if isinstance(linear, QuantizedLinear):
        return cast(Tensor, linear(x, norm=norm, residual=residual))
    assert norm is None, "normalized() applies it where a layer cannot"
    y = linear(x)
    return cast(Tensor, y if residual is None else residual + y)


def gated(gate: nn.Module, up: nn.Module, x: Tensor, *, norm: ops.Norm | None) -> Tensor:
    """Return silu(gate(norm(x))) * up(norm(x)), for x [..., columns]."""
    if _fit_together(gate, up):
        return cast(Tensor, gate(x, norm=norm, up=up))
    return gradients.gate(project(gate, x, norm=norm), project(up, x, norm=norm))


def _fit_together(gate: nn.Module, up: nn.Module) -> bool:
    if not (isinstance(gate, QuantizedLinear) and isinstance(up, QuantizedLinear)):
        return False
    if is_hooked(gate) or is_hooked(up):
        return False
    return gate.scheme.columns_per_group == up.scheme.columns_per_group
