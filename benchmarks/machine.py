"""What every benchmark shares: facts of the machine, peak memory, and results as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "transformers", "safetensors")


def facts() -> dict[str, Any]:
    """Name the hardware and the software that a figure was measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in _LIBRARIES},
        "commit": _commit(),
    }


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


def _cpu_model() -> str:
    """Give the processor's name, with its numbers, as the name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = dict(reversed([line.split("\t: ", 1) for line in lines if "\t: " in line]))
    clean = {key.strip(): value for key, value in fields.items()}
    return (
        f"{clean.get('model name', platform.processor())} (family {clean.get('cpu family')}, "
        f"model {clean.get('model')})"
    )


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
