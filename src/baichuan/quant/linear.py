"""A linear layer whose weight is quantized. Knows the kernels; no network and no file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baichuan.kernels import cuda, ops
from baichuan.kernels.layout import PackedMatrix, dequantize, pack, packed_shapes
from baichuan.quant.calibrated import round_calibrated
from baichuan.quant.rounding import round_weight
from baichuan.quant.scheme import Scheme


def is_hooked(module: nn.Module) -> bool:
    """Say whether something wants to see each call of a module (accelerate's offloading, a user).

    Offloaded, its weights are on its device only while it is called.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _is_offloaded(module: nn.Module) -> bool:
    """Say whether accelerate takes a module's weights away after each call."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", [hook]))


class QuantizedLinear(nn.Module):
    """y = x W^T with W in `scheme`; a place for `nn.Linear` without bias, in inference.

    On a GPU whose kernels want another order, the first product repacks the codes (kernels/cuda.py)
    and lets the saved order go; a state dict has the saved order all the same, then on the CPU.

    Attributes:
        codes, scales: buffers, laid out as `kernels/layout.py` says; what is saved. `codes` is None
            while they are repacked.
    """

    codes: Tensor | None
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, scheme: Scheme) -> None:
        """Make room for a weight [out_features, in_features]; the content is not set."""
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self._matrix: PackedMatrix | None = None
        self._repacked: cuda.CudaMatrix | None = None
        codes, scales = packed_shapes(
            out_features, in_features, scheme.bits, scheme.columns_per_group, scheme.per_row
        )
        self.register_buffer("codes", torch.empty(codes, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(scales, dtype=torch.bfloat16))

    @classmethod
    @torch.no_grad()
    def from_weight(
        cls, weight: Tensor, scheme: Scheme, moment: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantize a weight [out_features, in_features]; the layer is on the weight's device.

        Args:
            weight: of any float dtype.
            scheme: bits and groups.
            moment: of the inputs, for quant/calibrated.py, and overwritten; None rounds to nearest.
        """
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], scheme)
        if moment is None:
            codes, scales = round_weight(weight, scheme)
        else:
            codes, scales = round_calibrated(weight, moment, scheme)
        packed = pack(codes, scales, scheme.bits, scheme.columns_per_group)
        layer.codes, layer.scales = packed.codes, packed.scales
        return layer

    @property
    def matrix(self) -> PackedMatrix:
        """The weight as it is saved and as the kernels of a CPU take it."""
        kept, codes, scales = self._matrix, self.codes, self.scales
        if codes is None:
            assert self._repacked is not None, "codes are here or there"
            return self._repacked.packed()
        if kept is None or kept.codes is not codes or kept.scales is not scales:
            size = self.scheme.columns_per_group
            bits, rows, columns = self.scheme.bits, self.out_features, self.in_features
            kept = PackedMatrix(codes, scales, bits, size, rows, columns)
            # Offloaded codes must not be held beyond the call that they were brought for.
            self._matrix = None if _is_offloaded(self) else kept
        return kept

    @property
    def qweight(self) -> Tensor:
        """The codes, under the name by which peft finds where a quantized layer lies."""
        return self.matrix.codes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give the weight [out_features, in_features] that the codes stand for."""
        return dequantize(self.matrix, dtype)

    def forward(
        self,
        x: Tensor,
        norm: ops.Norm | None = None,
        up: QuantizedLinear | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Multiply x [..., in_features], fused with what stands around it: see `ops.linear`.

        In training mode x is not rounded, with gradients or without (behind a frozen embedding, for
        the reference of a preference): all of a network computes in one way.
        """
        weight, other = self._weight_for(x), None if up is None else up._weight_for(x)
        return ops.linear(x, weight, up=other, norm=norm, residual=residual, exact=self.training)

    def _weight_for(self, x: Tensor) -> PackedMatrix | cuda.CudaMatrix:
        """Give the weight in the best order for an input, repacked if this is the first such."""
        if self.codes is None:
            assert self._repacked is not None, "codes are here or there"
            return self._repacked
        self._repacked = None if _is_offloaded(self) else cuda.adopted(self.matrix, x.dtype)
        if self._repacked is None:
            return self.matrix
        self.codes = self._matrix = None
        return self._repacked

    def _restore(self) -> None:
        """Take back the codes in the saved order."""
        if self.codes is None:
            self.codes, self._repacked = self.matrix.codes, None

    def _apply(self, function: Any, recurse: bool = True) -> QuantizedLinear:
        """Move between devices, but keep the dtypes: `.half()` is for other layers."""
        self._restore()
        self.codes = function(self.codes)
        # As integers, which no cast between float types touches.
        self.scales = function(self.scales.view(torch.int16)).view(torch.bfloat16)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.codes is None:
            # Beside the repacked codes of all layers, the saved ones would not fit on the GPU.
            destination[f"{prefix}codes"] = self.matrix.codes.cpu()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._restore()
        super()._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        """Say the shape and the scheme."""
        return f"{self.in_features}, {self.out_features}, {self.scheme}"
