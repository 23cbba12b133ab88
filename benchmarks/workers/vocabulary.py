"""A made-up vocabulary for random weights: of the true size, and the same for every engine.

Standard library alone: it is also read in the virtual environments of other engines.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Kinds of pieces, numbered alike by sentencepiece and GGUF.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def pieces(size: int) -> Iterator[tuple[str, int]]:
    """Give text and kind of each piece: the special ones, 256 bytes, and words with a number."""
    yield from (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
    yield from ((f"<0x{byte:02X}>", _BYTE) for byte in range(256))
    yield from ((f"\u2581w{number}", _NORMAL) for number in range(259, size))
