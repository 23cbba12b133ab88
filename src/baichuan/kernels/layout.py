"""How the codes of a quantized matrix lie in memory: the order that every kernel reads.

Blocks of 16 rows. In a block, 4 columns of its 16 rows are 64 consecutive bytes, row after row
(int8, stored as code + 128). For int4, 8 columns are 64 bytes: the low nibbles hold columns 0..3,
the high nibbles columns 4..7 (stored as code + 8). For int3, 32 columns are three times 64 bytes:
the first 24 as int4's (stored as code + 4), the other 8 in the bits that nibbles have to spare, 3
and 7: bit 0 of their codes in the first 64 bytes, bit 1 in the second, bit 2 in the third. Scales
lie apart, 16 rows of one group at a time. Rows are filled up to 16 and columns to whole groups with
codes of 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.errors import UsageError

BLOCK = 16
_OFFSETS = {3: 4, 4: 8, 8: 128}


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized weight [rows, columns]; a subclass says in which order the tensors lie.

    Attributes:
        codes, scales: of one device.
        bits: 3, 4 or 8.
        group_size: columns that share one scale of the activations and, with several scales a row,
            of the weight.
        rows, columns: of the matrix without filling.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group_size: int
    rows: int
    columns: int

    def matches(self, other: QuantizedMatrix) -> bool:
        """Say whether another matrix can take the same input to outputs of the same shape."""
        mine = (self.rows, self.columns, self.group_size, self.codes.device)
        return mine == (other.rows, other.columns, other.group_size, other.codes.device)


@dataclass(frozen=True)
class PackedMatrix(QuantizedMatrix):
    """A quantized weight, as it is saved and as the kernels of a CPU read it.

    Attributes:
        codes: uint8 [blocks, chunks, 64].
        scales: bfloat16 [blocks, groups, 16], or [blocks, 1, 16] where each row has one scale.
    """

    def __post_init__(self) -> None:
        """Refuse what native code would read past the end of.

        Raises:
            UsageError: says which tensor does not fit.
        """
        one_scale = self.scales.ndim == 3 and self.scales.shape[1] == 1
        codes, scales = packed_shapes(
            self.rows, self.columns, self.bits, self.group_size, one_scale
        )
        for name, tensor, shape, dtype in (
            ("codes", self.codes, codes, torch.uint8),
            ("scales", self.scales, scales, torch.bfloat16),
        ):
            fits = tuple(tensor.shape) == shape and tensor.dtype == dtype
            if not (fits and tensor.is_contiguous() and tensor.device == self.codes.device):
                raise UsageError(
                    "The {name} of a quantized weight are {dtype} {shape}; they must be contiguous "
                    "{right_dtype} {right_shape} on {device}.",
                    name=name,
                    dtype=tensor.dtype,
                    shape=list(tensor.shape),
                    right_dtype=dtype,
                    right_shape=list(shape),
                    device=self.codes.device,
                )

    @property
    def scale_groups(self) -> int:
        """Scales of a row."""
        return self.scales.shape[1]


def packed_shapes(
    rows: int, columns: int, bits: int, group_size: int, per_row: bool
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shapes of codes and scales.

    Raises:
        UsageError: there is no such format: bits are 3, 4 or 8, groups whole multiples of 32
            columns, and rows and columns at least 1.
    """
    if bits not in _OFFSETS or group_size < 32 or group_size % 32 or rows < 1 or columns < 1:
        raise UsageError(
            "A quantized weight of {rows} x {columns} with {bits} bits in groups of {group_size} "
            "cannot be; bits are 3, 4 or 8, a group has a multiple of 32 columns.",
            rows=rows,
            columns=columns,
            bits=bits,
            group_size=group_size,
        )
    blocks, groups = -(-rows // BLOCK), -(-columns // group_size)
    chunks = groups * group_size * bits // 32
    return (blocks, chunks, 64), (blocks, 1 if per_row else groups, BLOCK)


def pack(codes: Tensor, scales: Tensor, bits: int, group_size: int) -> PackedMatrix:
    """Lay out codes int8 [rows, columns] and scales [rows, groups or 1].

    Raises:
        UsageError: a format that there is not, or codes that its bits cannot hold.
    """
    rows, columns = codes.shape
    packed_shapes(rows, columns, bits, group_size, per_row=scales.shape[1] == 1)
    least, most = (int(end) for end in codes.aminmax())
    if codes.dtype != torch.int8 or least < -_OFFSETS[bits] or most >= _OFFSETS[bits]:
        raise UsageError(
            "Codes are {dtype} from {least} to {most}; of {bits} bits they are int8 from {lowest} "
            "to {highest}.",
            dtype=codes.dtype,
            least=least,
            most=most,
            bits=bits,
            lowest=-_OFFSETS[bits],
            highest=_OFFSETS[bits] - 1,
        )
    more_rows, more_columns = -rows % BLOCK, -columns % group_size
    padded_codes = F.pad(codes, (0, more_columns, 0, more_rows))
    # Modulo 256, so that the bytes of a negative code come out right too.
    stored = padded_codes.view(torch.uint8) + _OFFSETS[bits]
    blocks = stored.view(-1, BLOCK, (columns + more_columns) // 4, 4)
    chunks = blocks.transpose(1, 2).reshape(len(blocks), -1, 64)
    if bits < 8:
        chunks = chunks[:, 0::2] | (chunks[:, 1::2] << 4)
    if bits == 3:
        chunks = _without_fourths(chunks)
    padded = F.pad(scales.to(torch.bfloat16), (0, 0, 0, more_rows)).view(-1, BLOCK, scales.shape[1])
    return PackedMatrix(
        chunks.contiguous(), padded.transpose(1, 2).contiguous(), bits, group_size, rows, columns
    )


def unpack(matrix: PackedMatrix) -> tuple[Tensor, Tensor]:
    """Undo `pack`: codes int8 [rows, columns] and scales bfloat16 [rows, groups or 1]."""
    chunks = _with_fourths(matrix.codes) if matrix.bits == 3 else matrix.codes
    if matrix.bits < 8:
        chunks = torch.stack([chunks & 15, chunks >> 4], dim=2).flatten(1, 2)
    stored = chunks.view(len(chunks), -1, BLOCK, 4).transpose(1, 2).reshape(len(chunks) * BLOCK, -1)
    codes = (stored - _OFFSETS[matrix.bits]).view(torch.int8)
    scales = matrix.scales.transpose(1, 2).reshape(len(chunks) * BLOCK, -1)
    return codes[: matrix.rows, : matrix.columns], scales[: matrix.rows]


def _without_fourths(chunks: Tensor) -> Tensor:
    """Spread each fourth chunk, of nibbles below 8, over the spare bits of the three before it."""
    fours = chunks.view(len(chunks), -1, 4, 64)
    bits = [(fours[:, :, 3] >> bit & 0x11) << 3 for bit in range(3)]
    return (fours[:, :, :3] | torch.stack(bits, dim=2)).flatten(1, 2)


def _with_fourths(chunks: Tensor) -> Tensor:
    """Undo `_without_fourths`."""
    threes = chunks.view(len(chunks), -1, 3, 64)
    bits = [(threes[:, :, bit] >> 3 & 0x11) << bit for bit in range(3)]
    fourth = bits[0] | bits[1] | bits[2]
    return torch.cat([threes & 0x77, fourth[:, :, None]], dim=2).flatten(1, 2)


def dequantize(matrix: PackedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give the matrix [rows, columns] that codes and scales stand for."""
    codes, scales = unpack(matrix)
    if scales.shape[1] > 1:
        scales = scales.repeat_interleave(matrix.group_size, 1)[:, : matrix.columns]
    return (codes.float() * scales.float()).to(dtype)
