"""Loading a model for a command: what the person waiting sees on stderr, and device names."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console

from baichuan.cli.language import local
from baichuan.errors import UsageError

if TYPE_CHECKING:
    from baichuan.model.network import BaichuanForCausalLM
    from baichuan.model.tokenizer import BaichuanTokenizer

#: What accelerate takes beside names of devices.
_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_model(
    name: str | None, *, device: str | None = None, **where: Any
) -> tuple[BaichuanForCausalLM, BaichuanTokenizer]:
    """Load as `baichuan.load` does; a large model shows its progress, the demo none.

    Raises:
        UsageError: a device that there is not.
        BaichuanError: whatever `baichuan.load` finds wrong.
    """
    notes = Console(stderr=True)
    watched = sys.stderr.isatty()
    with notes.status(local("starting", "启动中")) if watched else nullcontext():
        # torch and transformers, which take seconds to import
        from transformers.utils import logging

        from baichuan.checkpoint.load import load

        _check_device(device)
    if name is None:
        logging.disable_progress_bar()
    elif watched:
        notes.print(local(f"loading {name}", f"正在加载 {name}"), style="dim", markup=False)
    return load(name, device=device, progress=watched, **where)


def _check_device(device: str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    if device is None or device in _PLACEMENTS:
        return
    import torch

    there = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        there += [accelerator.type]
        there += [f"{accelerator.type}:{n}" for n in range(torch.accelerator.device_count())]
    if device not in there:
        raise UsageError(
            f"device is {device!r}; on this machine there are {', '.join(there)}, or 'auto'."
        )
