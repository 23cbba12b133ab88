"""Attention from the newest positions of sequences whose caches lie in blocks, as one kernel call.

A CPU runs the native code (native.py) or, without it, plain torch (reference.py), to the same spec.
Knows blocks of keys and values; not who owns them (engine/cache.py).
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.kernels import native, reference
from baichuan.kernels.checks import check_tensor

#: Positions of a block: few enough to waste little, and a run of memory long enough to read fast.
BLOCK = 64
#: Cosines and sines of the angles by which RoPE turns a row: float32 [rows, width / 2].
Angles = tuple[Tensor, Tensor]


class PagedCaches:
    """The blocks of each row's sequence, checked once for all layers of a pass.

    Rows that follow each other and have the same list of blocks are one sequence's: each holds one
    position more than the one before, whose key and value it sees.

    Attributes:
        slabs: per row its sequence's blocks, each [layers, 2 (keys, values), heads, BLOCK, width].
        counts: positions that the row's sequence holds before it; there is room for one more.
        shape, dtype: of a block.
        native: whether native code reads the dtype.
    """

    def __init__(self, slabs: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> None:
        """Take note of the blocks' addresses.

        Raises:
            UsageError: blocks that differ in shape or dtype, are not contiguous or not on a CPU,
                or are too few.
        """
        self.slabs, self.counts = slabs, counts
        _check_counts(slabs, counts)
        first = slabs[0][0]
        self.shape, self.dtype = tuple(first.shape), first.dtype
        self.native = self.dtype in native.DTYPES
        if first.ndim != 5 or self.shape[1] != 2 or self.shape[3] != BLOCK:
            raise UsageError(
                "A block of a cache is {shape}; it must be [layers, 2, heads, {block}, width].",
                shape=list(self.shape),
                block=BLOCK,
            )
        last = {id(held): (held, count) for held, count in zip(slabs, counts, strict=True)}
        for held, count in last.values():
            if len(held) * BLOCK <= count:
                raise UsageError(
                    "A cache of {blocks} blocks holds {count} positions and has no room for one "
                    "more; reserve a block first.",
                    blocks=len(held),
                    count=count,
                )
            for slab in held:
                check_tensor("A cache's block", slab, self.shape, self.dtype, torch.device("cpu"))
                if not slab.is_contiguous():
                    raise UsageError("A cache's block is not contiguous; it must be.")
        self._tables = tables = {  # what the next line points to
            id(held): (ctypes.c_void_p * len(held))(*(s.data_ptr() for s in held)) for held in slabs
        }
        uses = Counter(address for table in tables.values() for address in table)
        for held, count in zip(slabs, counts, strict=True):
            if uses[tables[id(held)][count // BLOCK]] > 1:
                raise UsageError(
                    "The block behind {count} positions is part of two sequences' caches, or twice "
                    "of one; only blocks that are full can be shared.",
                    count=count,
                )
        addresses = (ctypes.addressof(tables[id(held)]) for held in slabs)
        self.pointers = (ctypes.c_void_p * len(slabs))(*addresses)
        self.numbers = (ctypes.c_int64 * len(counts))(*counts)


def _check_counts(slabs: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> None:
    """Refuse counts with which native code would write outside of the blocks."""
    if not slabs or len(slabs) != len(counts) or not all(slabs):
        raise UsageError(
            "There are {tables} lists of blocks and {counts} counts; give one list of one block or "
            "more, and one count, for each row.",
            tables=len(slabs),
            counts=len(counts),
        )
    seen: dict[int, int] = {}  # lists of blocks, and the row that has one last
    for row, (held, count) in enumerate(zip(slabs, counts, strict=True)):
        before = seen.get(id(held))
        follows = before is None or (before == row - 1 and count == counts[before] + 1)
        if not isinstance(count, int) or count < 0 or not follows:
            raise UsageError(
                "Row {row} holds {count!r} positions; a count is a whole number from 0, and rows "
                "of one sequence follow each other, each with one position more.",
                row=row,
                count=count,
            )
        seen[id(held)] = row


def attend_newest(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    caches: PagedCaches,
    layer: int,
    *,
    slopes: Tensor | None = None,
    angles: Angles | None = None,
) -> Tensor:
    """Append each row's position to its sequence's cache, and attend from it to all up to there.

    A row's result is the same, to the last bit, whatever other sequences are in the batch, and
    whether its sequence's positions come together or one by one.

    Args:
        query, key, value: [rows, heads, width] in the caches' dtype, on a CPU; parts of a wider
            tensor's rows are taken as they are.
        caches: written to, behind each row's count.
        layer: whose part of the blocks is meant.
        slopes: float32 [heads], ALiBi's; None for none.
        angles: rotate query and key by them (model/rotary.py); None for none.

    Returns:
        [rows, heads, width].

    Raises:
        UsageError: shapes, dtypes or devices that do not fit each other.
    """
    layers, _, heads, _, width = caches.shape
    shape, device = (len(caches.counts), heads, width), torch.device("cpu")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor, shape, caches.dtype, device)
    if slopes is not None:
        check_tensor("slopes", slopes, (heads,), torch.float32, device)
    if angles is not None and width % 2:
        raise UsageError(
            "The heads are {width} wide; only an even width can be rotated.", width=width
        )
    for tensor in angles or ():
        check_tensor("angles", tensor, (shape[0], width // 2), torch.float32, device)
    if not 0 <= layer < layers:
        raise UsageError(
            "The layer is {layer}; the caches have {layers}.", layer=layer, layers=layers
        )
    if not caches.native or native.chosen() == native.TORCH:
        return _in_torch(query, key, value, caches, layer, slopes, angles)
    call = attend_call(query, key, value, caches, layer, slopes=slopes, angles=angles)
    native.run([call])
    return call.result


def attend_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    caches: PagedCaches,
    layer: int,
    *,
    slopes: Tensor | None,
    angles: Angles | None,
) -> native.AttendCall:
    """Prepare what `attend_newest` does for native.run, unchecked, for `caches.native` ones.

    The call's attribute `result` [rows, heads, width] has no content until it has run.
    """
    query, key, value = (_with_whole_rows(tensor) for tensor in (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype)
    slopes = None if slopes is None else slopes.contiguous()
    cos, sin = (None, None) if angles is None else (angle.contiguous() for angle in angles)
    call = native.AttendCall(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        out=out.data_ptr(),
        blocks=ctypes.addressof(caches.pointers),
        counts=ctypes.addressof(caches.numbers),
        slopes=_address(slopes),
        cos=_address(cos),
        sin=_address(sin),
        rows=len(caches.counts),
        heads=caches.shape[2],
        width=caches.shape[4],
        block=BLOCK,
        layer=layer,
        query_stride=query.stride(0),
        key_stride=key.stride(0),
        value_stride=value.stride(0),
        dtype=native.DTYPES[caches.dtype],
        level=native.level(),
    )
    call.result, call.holds = out, (query, key, value, caches, slopes, cos, sin)
    return call


def _in_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    caches: PagedCaches,
    layer: int,
    slopes: Tensor | None,
    angles: Angles | None,
) -> Tensor:
    if angles is not None:
        query, key = (reference.rotate(tensor, *angles) for tensor in (query, key))
    rows = []
    for number, (held, count) in enumerate(zip(caches.slabs, caches.counts, strict=True)):
        block, offset = divmod(count, BLOCK)
        held[block][layer, 0, :, offset] = key[number]
        held[block][layer, 1, :, offset] = value[number]
        keys, values = torch.cat([slab[layer] for slab in held], dim=2)[:, :, : count + 1]
        # A copy begins where memory is aligned: products of the same numbers that begin elsewhere
        # may add in another order, and a row would not be what it is alone.
        rows.append(reference.attend(query[number].clone(), keys, values, slopes))
    return torch.stack(rows)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _with_whole_rows(tensor: Tensor) -> Tensor:
    """Give the tensor itself if each sequence's [heads, width] lies in one run of memory."""
    regular = tensor.stride()[1:] == (tensor.shape[2], 1)
    return tensor if regular else tensor.contiguous()
