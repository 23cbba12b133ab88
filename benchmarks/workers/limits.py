"""Measures what the machine can do at best: compiles benchmarks/limits.cpp once and runs it.

python benchmarks/workers/limits.py [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parents[1] / "limits.cpp"
_FLAGS = ("-O3", "-std=c++17", "-fopenmp")
#: Far more than any L3: a virtual machine may report hundreds of megabytes.
_BUFFER_BYTES = 3_000_000_000


class Limits:
    """The compiled program; it lives in a temporary directory as long as this does."""

    def __init__(self, threads: int) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="limits-")
        self._program = str(Path(self._home.name) / "limits")
        self._settings = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = ["g++", *_FLAGS, str(_SOURCE), "-o", self._program]
        subprocess.run(command, check=True)

    def bandwidth(self, size: int = _BUFFER_BYTES) -> dict[str, Any]:
        """Read a buffer of `size` bytes: {"read_gb_per_second": {"median", "highest"}, ...}."""
        return self._run("bandwidth", str(size))

    def int8(self, seconds: float = 1.0) -> dict[str, Any]:
        """Multiply in registers: {"vnni_gmac_per_second": {"median", "highest"}, "amx_...", ...}.

        Instruction sets that the processor lacks are absent.
        """
        return self._run("int8", str(seconds))

    def _run(self, *words: str) -> dict[str, Any]:
        command = [self._program, *words]
        done = subprocess.run(
            command, env=self._settings, check=True, stdout=subprocess.PIPE, text=True
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result


def main() -> None:
    """Print the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    limits = Limits(parser.parse_args().threads)
    print(json.dumps({**limits.bandwidth(), **limits.int8()}, indent=2))


if __name__ == "__main__":
    main()
