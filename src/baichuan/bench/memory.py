"""What a measurement will need, what is free, and the peak that it came to.

The operating system counts the peak: all resident pages of the process, with Python, torch, the
weights (mapped or not) and the cache.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from baichuan.bench.job import Job, empty_network, kept_dtype, weight_bytes

#: Python, torch and transformers (about 0.5 GB), and the activations of a part of the prompt.
_BESIDE_BYTES = 1_000_000_000
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
#: Written there, it sets the peak back to what is resident now (Linux, proc_pid_clear_refs(5)).
_CLEAR_PEAK = "5"


@dataclass(frozen=True)
class Need:
    """Bytes that a precision will take, computed from shapes.

    Attributes:
        weights: of the network.
        cache: of one sequence.
        caches: at a time.
    """

    weights: int
    cache: int
    caches: int

    @property
    def total(self) -> int:
        """All of it, with what the process takes besides."""
        return self.weights + self.caches * self.cache + _BESIDE_BYTES


def need(job: Job, precision: str) -> Need:
    """Compute what the measurement of a precision takes."""
    config = job.config
    entries = 2 * config.num_hidden_layers * config.hidden_size
    cache = (job.prompt + job.tokens) * entries * kept_dtype(job, precision).itemsize
    weights = weight_bytes(empty_network(job, precision))
    return Need(weights, cache, caches=2 if job.rope else 1)


def available(device: str) -> int:
    """Give the bytes that are free without pushing anything to the disk."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return int(psutil.virtual_memory().available)


def gpu_peak_bytes(device: str) -> int | None:
    """Give what torch has taken of a GPU at most; None on a CPU."""
    return torch.cuda.max_memory_reserved() if device == "cuda" else None


class Peak:
    """The highest resident memory of this process, of which the latest part can be told apart."""

    def __init__(self) -> None:
        self._before = 0
        self._apart = False

    def begin_part(self) -> None:
        """Count the part from here on by itself, where the system can (Linux)."""
        self._before = self.bytes
        try:
            _CLEAR.write_text(_CLEAR_PEAK, "ascii")
            self._apart = True
        except OSError:
            self._apart = False

    @property
    def part_bytes(self) -> int | None:
        """Peak since `begin_part`; None where the system cannot tell."""
        return _peak_bytes() if self._apart else None

    @property
    def bytes(self) -> int:
        """Peak since the process began."""
        return max(self._before, _peak_bytes())


def _peak_bytes() -> int:
    if _STATUS.is_file():
        counted = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text("ascii"), re.MULTILINE)
        if counted:
            return int(counted[1]) * 1024
    if os.name == "nt":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows has not

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
