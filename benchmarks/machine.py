"""What every benchmark shares: facts of the machine, peak memory, and results as JSON."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

from baichuan.bench.machine import facts as installed

RESULTS = Path(__file__).parent / "results"


def facts() -> dict[str, Any]:
    """Name the hardware and the software that a figure was measured on."""
    return {**installed(), "commit": _commit()}


def peak_memory_gb() -> float:
    """Give this process's highest resident memory so far, as the operating system counted it."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def memory_gb(field: str) -> float:
    """Give one line of Linux's /proc/self/status in GB: `RssAnon` (own), `RssFile` (mapped), ..."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise KeyError(field)


def save(name: str, figures: dict[str, Any]) -> None:
    """Write figures and the machine's facts to results/NAME.json at one stroke, and print them."""
    text = json.dumps({"machine": facts(), **figures}, indent=2) + "\n"
    RESULTS.mkdir(exist_ok=True)
    partial = RESULTS / f"{name}.json.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(RESULTS / f"{name}.json")
    print(text)


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
