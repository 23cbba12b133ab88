"""Quantized products by torch's own CUDA kernels, and the order of codes that these read.

int4 goes through `_weight_int4pack_mm` (bfloat16 on compute capability 8.0 and above), int8 with
one scale a row through `_weight_int8pack_mm`. All else, and inputs of many rows, are multiplied by
the dequantized weight. NOT MEASURED ON A GPU, nor run on one: what is tested is that codes, scales
and zeros have the meaning that the same operators give them on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.kernels.layout import BLOCK, PackedMatrix, QuantizedMatrix, pack, unpack

_OPS = torch.ops.aten
_CAPABILITY = (8, 0)  # of tensor cores for bfloat16
_TILE = 16  # columns of a tensor core's tile
#: Up to how many rows of input the kernels serve. The int8 kernel reads all codes for each row, the
#: int4 kernel for each 16; beyond, one pass of dequantizing is less. Reckoned, not measured.
_MOST_ROWS = {8: 16, 4: 256}


@dataclass(frozen=True)
class CudaMatrix(QuantizedMatrix):
    """A quantized weight in the order that torch's CUDA kernels read; made by `adopted`.

    Attributes:
        codes: int8 [rows, columns]; or, with rows filled up to 16 and columns to whole groups,
            int32 [rows / 8, columns / (16 * inner), 32, inner / 2], eight int4 codes + 8 in each.
        scales: bfloat16 [rows, groups], or [rows, 1] where each row has one scale.
        operand: what the kernel takes beside the codes: float32 [rows] for int8; for int4 bfloat16
            [groups, rows, 2] with pairs (scale, 0), where code c means (c - 8) * scale + 0.
    """

    operand: Tensor

    def packed(self) -> PackedMatrix:
        """Give the weight in the saved order, to the last bit."""
        codes = self.codes if self.bits == 8 else untiled(self.codes)[: self.rows, : self.columns]
        return pack(codes, self.scales, self.bits, self.group_size)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Give the matrix [rows, columns] that codes and scales stand for."""
        codes = self.codes if self.bits == 8 else untiled(self.codes)[: self.rows]
        groups = codes.to(dtype).view(self.rows, self.scales.shape[1], -1)
        return groups.mul_(self.scales[..., None]).flatten(1)[:, : self.columns]

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply x [n, columns] by the weight transposed: [n, rows] in the dtype of x."""
        fits = self.bits == 8 or x.dtype == torch.bfloat16
        if not fits or not 0 < len(x) <= _MOST_ROWS[self.bits]:
            return F.linear(x, self.dequantize(x.dtype))
        if self.bits == 8:
            y: Tensor = _OPS._weight_int8pack_mm(x.contiguous(), self.codes, self.operand)
            return y
        filled = F.pad(x, (0, -self.columns % self.group_size)).contiguous()
        y = _OPS._weight_int4pack_mm(filled, self.codes, self.group_size, self.operand)
        return y[:, : self.rows]


def adopted(matrix: PackedMatrix, dtype: torch.dtype) -> CudaMatrix | None:
    """Repack a weight for the kernels of the GPU that it is on.

    Args:
        matrix: on any device.
        dtype: of the inputs to come.

    Returns:
        None where the kernels cannot take it, or where their order of codes is not the one known
        here, from which `packed` would not find the way back.
    """
    if not available(matrix, dtype):
        return None
    # Made during inference, it must serve training too.
    with torch.inference_mode(False), torch.no_grad():
        codes, scales = unpack(matrix)
        rows, columns = codes.shape
        if matrix.bits == 8:
            codes, operand = codes.contiguous(), scales[:, 0].float()
        else:
            operand = scales_and_zeros(scales, -(-columns // matrix.group_size))
            codes = _OPS._convert_weight_to_int4pack(*tile_arguments(codes, matrix.group_size))
        repacked = CudaMatrix(codes, scales, matrix.bits, matrix.group_size, rows, columns, operand)
        return repacked if torch.equal(repacked.packed().codes, matrix.codes) else None


def available(matrix: PackedMatrix, dtype: torch.dtype) -> bool:
    """Say whether the device that a matrix is on has a kernel for it and for inputs of a dtype."""
    device = matrix.codes.device
    if device.type != "cuda" or torch.version.hip is not None or matrix.bits == 3:
        return False
    if matrix.bits == 8:
        known = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", "CUDA")
        return bool(known) and matrix.scale_groups == 1
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= _CAPABILITY


def tile_arguments(codes: Tensor, group_size: int) -> tuple[Tensor, int]:
    """Give what `_convert_weight_to_int4pack` takes, from codes int8 [rows, columns].

    Returns:
        uint8 [filled rows, filled columns / 2] of codes + 8, the even column in the high half; and
        `inner`, the number of tiles that a thread reads at once: 8, 4 or 2, as columns allow.
    """
    rows, columns = codes.shape
    filled = F.pad(codes, (0, -columns % group_size, 0, -rows % BLOCK))
    stored = (filled + 8).view(torch.uint8)
    inner = next(n for n in (8, 4, 2) if filled.shape[1] % (_TILE * n) == 0)
    return stored[:, 0::2] << 4 | stored[:, 1::2], inner


def scales_and_zeros(scales: Tensor, groups: int) -> Tensor:
    """Give what `_weight_int4pack_mm` takes, from scales bfloat16 [rows, groups or 1]."""
    filled = F.pad(scales, (0, 0, 0, -len(scales) % BLOCK)).expand(-1, groups)
    return torch.stack([filled.T, torch.zeros_like(filled.T)], dim=-1).contiguous()


def untiled(tiles: Tensor) -> Tensor:
    """Undo `_convert_weight_to_int4pack`: codes int8 [filled rows, filled columns].

    Thread 4 r + c of 32 holds row r of 8. Of 32 columns, which are two tiles, its word has columns
    16 h + 8 q + 2 c + l, for h, q, l in 0 and 1, in the four bits from bit 16 l + 8 h + 4 q on.
    """
    blocks, spans, _, words = tiles.shape
    pairs = tiles.view(torch.uint8).view(blocks, spans, 8, 4, words, 2, 2)  # ..., r, c, word, l, h
    stored = torch.stack([pairs & 15, pairs >> 4], dim=-1)  # ..., q
    ordered = stored.permute(0, 2, 1, 4, 6, 7, 3, 5)  # block, r, span, word, h, q, c, l
    return (ordered.reshape(blocks * 8, -1) - 8).view(torch.int8)
