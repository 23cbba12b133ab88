"""How a training process computes and allocates on a CPU. Knows no model and no recipe."""

from __future__ import annotations

import ctypes
import platform

import torch

#: glibc's number of the setting, from malloc.h.
_M_MMAP_THRESHOLD = -3
#: Bytes from which memory is the operating system's again as soon as it is freed.
_LARGE = 2**20


def prepare_process() -> None:
    """Make training on a CPU fast and small, for as long as this process lives.

    - Subnormal numbers count as 0. The probabilities of ALiBi's steep heads are full of them, and
      each costs a processor a hundred cycles: in float32, attention's way back is five times
      slower. This holds for the calling thread and those that it starts: call it before torch has
      computed anything.
    - glibc returns large tensors when they are freed. By itself it keeps what is below 32 MB, in
      holes that the tensors of the next step, of other lengths, do not fit into.
    """
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
