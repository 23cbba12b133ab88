"""The hardware and the software that a figure was measured on."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from baichuan.kernels import native
from baichuan.version import __version__

_LIBRARIES = ("torch", "transformers", "safetensors")


def facts(device: str = "cpu") -> dict[str, Any]:
    """Name them, for a JSON file."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": native.chosen(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {"baichuan": __version__, **{name: version(name) for name in _LIBRARIES}},
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_model() -> str:
    """Give the processor's name, with its numbers, as the name alone may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    # The first processor's lines come first, so that they win.
    fields = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))
    clean = {key.strip(): value.strip() for key, value in fields.items()}
    name = clean.get("model name", platform.processor())
    if "cpu family" not in clean:
        return name
    return f"{name} (family {clean['cpu family']}, model {clean['model']})"
