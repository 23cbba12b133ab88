"""The original's own int8 and int4, exactly: for whoever must reproduce its numbers.

Source of the arithmetic: the published `quantizer.py` of Baichuan-13B-Chat. One scale per row in
the weight's dtype, kept as float32; int8 lies transposed, eight int4 values share an int32. The
product is an ordinary one with the dequantized weight in the dtype of the input, so it is slow; for
speed there is `quant/linear.py`. The original's int4 needs a CUDA kernel; here it is plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baichuan.errors import UsageError
from baichuan.quant.scheme import Scheme

_PER_WORD = 8
_SHIFTS = tuple(range(0, 32, 4))


class OriginalLinear(nn.Module):
    """y = x W^T with W as the original's `quantize(bits)` leaves it.

    Attributes:
        codes: int8 [in_features, out_features], or int32 [out_features, in_features / 8] with
            element 0 of eight in the lowest bits.
        scales: float32 [out_features].
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, scheme: Scheme) -> None:
        """Make room; the content is not set.

        Raises:
            UsageError: int4 and columns that eight does not divide.
        """
        super().__init__()
        if scheme.bits == 4 and in_features % _PER_WORD:
            raise UsageError(
                "The original's int4 packs eight columns in a word, but a layer has {columns}; "
                "use the default scheme.",
                columns=in_features,
            )
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        if scheme.bits == 8:
            codes = torch.empty((in_features, out_features), dtype=torch.int8)
        else:
            codes = torch.empty((out_features, in_features // _PER_WORD), dtype=torch.int32)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.empty(out_features, dtype=torch.float32))

    @classmethod
    @torch.no_grad()
    def from_weight(cls, weight: Tensor, scheme: Scheme) -> OriginalLinear:
        """Quantize a weight [out_features, in_features].

        Raises:
            UsageError: the weight holds NaN or infinity.
        """
        if not bool(weight.isfinite().all()):
            raise UsageError("The weight holds NaN or infinity, which no code stands for.")
        with torch.device("meta"):
            layer = cls(weight.shape[1], weight.shape[0], scheme)
        scales = (weight.abs().amax(-1) / (2 ** (scheme.bits - 1) - 1)).float()
        # The original divides by zero where a row is all zeros; such a row has codes of zero here.
        codes = (weight.float() / torch.where(scales == 0, 1.0, scales)[:, None]).round()
        codes = codes.to(torch.int8)
        layer.codes = codes.T.contiguous() if scheme.bits == 8 else _packed(codes)
        layer.scales = scales
        return layer

    @property
    def qweight(self) -> Tensor:
        """The codes, under the name by which peft finds where a quantized layer lies."""
        return self.codes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give the weight [out_features, in_features] as the original multiplies by it."""
        codes = self.codes.T if self.scheme.bits == 8 else _unpacked(self.codes)
        return codes.to(dtype) * self.scales.to(dtype)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in_features] in its own dtype."""
        return F.linear(x, self.dequantize(x.dtype))

    def _apply(self, function: Any, recurse: bool = True) -> OriginalLinear:
        """Move between devices, but keep the dtypes."""
        self.codes = function(self.codes)
        self.scales = function(self.scales.view(torch.int32)).view(torch.float32)
        return self

    def extra_repr(self) -> str:
        """Say the shape and the scheme."""
        return f"{self.in_features}, {self.out_features}, {self.scheme}"


def _packed(codes: Tensor) -> Tensor:
    words = codes.view(len(codes), -1, _PER_WORD).to(torch.int64) & 15
    shifted = words << torch.tensor(_SHIFTS, device=codes.device)
    # As unsigned words; the highest nibble makes int32 negative.
    return shifted.sum(-1).to(torch.uint32).view(torch.int32)


def _unpacked(words: Tensor) -> Tensor:
    nibbles = (words[..., None] >> torch.tensor(_SHIFTS, device=words.device)) & 15
    return ((nibbles ^ 8) - 8).flatten(1)
