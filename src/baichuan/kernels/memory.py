"""Memory in pages of 2 MB. Knows addresses and pages; no weight's and no cache's meaning.

Decoding reads all weights and the whole cache once per token. In pages of 4 KB, which is what a
mapped file has, the processor also reads a page table entry for every 4 KB; in pages of 2 MB it
hardly does (docs/quantization.md has figures). The price: such weights are this process's own, not
shared with others.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_DROP = getattr(mmap, "MADV_DONTNEED", None)


def empty_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Give a new CPU tensor, in large pages where there are some; what is not touched is not taken.

    Elsewhere than on Linux it is an ordinary tensor.
    """
    size = math.prod(shape) * dtype.itemsize
    if _HUGE is None or size == 0:
        return torch.empty(*shape, dtype=dtype)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(_HUGE)
    return torch.frombuffer(room, dtype=dtype).view(*shape)


def moved_to_huge_pages(tensor: Tensor) -> Tensor:
    """Copy a contiguous CPU tensor into memory of its own, in large pages where there are some.

    The source's memory is given back at once, so that the weights are not held twice: the source
    must not be used any more.
    """
    copy = empty_in_huge_pages(tensor.shape, tensor.dtype)
    copy.copy_(tensor)
    _give_back(tensor)
    return copy


def _give_back(tensor: Tensor) -> None:
    """Drop the whole pages of a tensor: they stay in the file that is mapped, or are gone."""
    if _DROP is None or _HUGE is None:
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        size = ctypes.c_size_t(end - begin)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), size, _DROP)
