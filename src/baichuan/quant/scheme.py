"""How one matrix is quantized: bits and groups. Knows no tensor and no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baichuan.errors import UsageError

BITS = (8, 4, 3)
GROUP_SIZES = (32, 64, 128, 256)
#: How the codes lie and are multiplied: this package's way, or the original code's, exactly.
LAYOUTS = ("blocks", "original")
#: Columns that share a scale of the activations where a row of the weight has one scale.
ACTIVATION_GROUP = 128


@dataclass(frozen=True)
class Scheme:
    """Symmetric rounding to `bits`, with one scale for each `group_size` columns of a row.

    Attributes:
        bits: 8, 4 or 3.
        group_size: 32, 64, 128 or 256; None for one scale per row.
        layout: "blocks" (quant/linear.py) or "original" (quant/original.py; one scale per row).
    """

    bits: int
    group_size: int | None
    layout: str = "blocks"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in BITS:
            raise UsageError("bits is {given!r}; allowed is 8, 4 or 3.", given=self.bits)
        size = self.group_size
        if size is not None and (type(size) is not int or size not in GROUP_SIZES):
            raise UsageError(
                "group_size is {given!r}; allowed is {sizes}. Left out, int8 has one scale a row, "
                "int4 groups of 128 and int3 of 64.",
                given=size,
                sizes=", ".join(map(str, GROUP_SIZES)),
            )

        original = self.layout == "original"
        if self.layout not in LAYOUTS or (original and (size is not None or self.bits == 3)):
            raise UsageError(
                "The scheme is {layout!r} with {bits} bits and groups of {size}; allowed are "
                "'blocks', and 'original' with 8 or 4 bits and without groups.",
                layout=self.layout,
                bits=self.bits,
                size=size,
            )

    def to_dict(self) -> dict[str, Any]:
        """Give what is saved in config.json."""
        layout = {} if self.layout == "blocks" else {"layout": self.layout}
        return {"bits": self.bits, "group_size": self.group_size, **layout}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Scheme:
        """Read what `to_dict` gave."""
        return cls(saved["bits"], saved["group_size"], saved.get("layout", "blocks"))

    @classmethod
    def of_bits(cls, bits: int, group_size: int | None = None) -> Scheme:
        """Give the default for a number of bits: int8 by rows, int4 by 128, int3 by 64 columns."""
        return cls(bits, group_size or {4: 128, 3: 64}.get(bits))

    @property
    def columns_per_group(self) -> int:
        """Columns that the kernels take at a time."""
        return self.group_size or ACTIVATION_GROUP

    @property
    def per_row(self) -> bool:
        """Whether a row has one scale."""
        return self.group_size is None

    def stored_bits(self, columns: int) -> float:
        """Bits per weight with everything that is stored, for rows of `columns` weights."""
        groups = -(-columns // self.columns_per_group)
        padded = groups * self.columns_per_group
        return (padded * self.bits + 16 * (1 if self.per_row else groups)) / columns
