"""How many positions the caches of all requests may hold together, by the memory that is free.

Knows a network's shape and the operating system's figures; no request.
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import torch

from baichuan.model.network import BaichuanForCausalLM

#: What other programs, the activations of a pass and the HTTP process are left.
_MARGIN_SHARE, _MARGIN_BYTES = 0.1, 1_000_000_000
_CGROUP = Path("/sys/fs/cgroup")


def bytes_per_token(model: BaichuanForCausalLM, draft: BaichuanForCausalLM | None = None) -> int:
    """Give what one position takes: a key and a value in every layer, the draft's included."""
    config = model.config
    own = int(2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize)
    return own if draft is None else own + bytes_per_token(draft)


def tokens_that_fit(
    model: BaichuanForCausalLM, max_batch: int, draft: BaichuanForCausalLM | None = None
) -> int:
    """Give as many positions as memory has room for, now that the models are loaded.

    At least one full context, and at most one for each of `max_batch` requests.
    """
    free = _free_bytes(model)
    room = int(free * (1 - _MARGIN_SHARE) - _MARGIN_BYTES) // bytes_per_token(model, draft)
    context = model.config.context_length
    return max(context, min(room, context * max_batch))


def _free_bytes(model: BaichuanForCausalLM) -> int:
    devices = {parameter.device for parameter in model.parameters()}
    gpus = [device for device in devices if device.type == "cuda"]
    if gpus:
        return sum(torch.cuda.mem_get_info(device)[0] for device in gpus)
    free = int(psutil.virtual_memory().available)
    return min(free, _left_to_container(free)) - _mapped_bytes(model)


def _mapped_bytes(model: BaichuanForCausalLM) -> int:
    """Give the bytes of weights that lie in mapped files: needed, yet counted as free."""
    weights: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    memory = psutil.Process().memory_info()
    own = int(memory.rss - getattr(memory, "shared", 0))  # Linux tells mapped pages apart
    return max(0, weights - own)


def _left_to_container(otherwise: int, group: Path = _CGROUP) -> int:
    """Give what the memory limit of a container (cgroup v2) leaves; `otherwise` without one.

    Files' pages that were not used of late are given up when memory is needed.
    """
    try:
        most, used = ((group / f"memory.{name}").read_text("ascii") for name in ("max", "current"))
        inactive = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
        return int(most) - int(used) + (int(inactive[1]) if inactive else 0)
    except (OSError, ValueError):  # no such file, or "max"
        return otherwise
