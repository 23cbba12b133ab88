"""Memory and time of attention over a long prompt at the 13B's width: ours against a whole bias.

    python benchmarks/attention_memory.py

One layer's attention (40 heads of 128, bfloat16), each way in a process of its own. "whole bias" is
the published code's way: a [heads, L, L] bias added to [heads, L, L] scores. Writes
results/attention_memory.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from typing import Any

import machine
import torch
from torch import Tensor

from baichuan.model.attention import alibi_slopes, attend, slopes_on

_HEADS, _HEAD_DIM = 40, 128
_LENGTHS = (1024, 2048, 4096, 8192)
_LONGEST_WHOLE = 4096
_REPEATS = 3


def whole_bias(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend as the published code does, with everything [heads, L, L] in memory."""
    length = query.shape[2]
    slopes = torch.tensor(alibi_slopes(_HEADS))[:, None, None]
    bias = (slopes * torch.arange(length)).expand(_HEADS, length, length).clone()
    bias += torch.full((length, length), float("-inf")).triu(1)
    scores = query @ key.transpose(2, 3) / math.sqrt(_HEAD_DIM) + bias.to(query.dtype)
    return scores.softmax(-1) @ value


def linear(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend as this package does."""
    return attend(query, key, value, slopes=slopes_on(query.shape[1], query.device))


_WAYS = {"whole_bias": whole_bias, "ours": linear}


def measure(way: str, length: int) -> dict[str, float]:
    """Run one way in this process: how much memory it adds at its peak, and its seconds."""
    query, key, value = torch.randn(3, 1, _HEADS, length, _HEAD_DIM, dtype=torch.bfloat16)
    _WAYS[way](query[:, :, :64], key[:, :, :64], value[:, :, :64])
    before = machine.peak_memory_gb()
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        _WAYS[way](query, key, value)
        seconds.append(time.perf_counter() - begin)
    added = machine.peak_memory_gb() - before
    return {"added_peak_gb": round(added, 3), "seconds": round(statistics.median(seconds), 3)}


def main() -> None:
    """Measure every way and length, alternating, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("WAY", "LENGTH"), help="measure in this process")
    arguments = parser.parse_args()
    if arguments.one:
        way, length = arguments.one
        print(json.dumps(measure(way, int(length))))
        return
    rows: list[dict[str, Any]] = []
    for length in _LENGTHS:
        for way in _WAYS:
            if way == "whole_bias" and length > _LONGEST_WHOLE:
                continue
            command = [sys.executable, __file__, "--one", way, str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"way": way, "tokens": length, **json.loads(done.stdout)})
    shape = f"one layer, {_HEADS} heads x {_HEAD_DIM}, bfloat16"
    machine.save("attention_memory", {"shape": shape, "rows": rows})


if __name__ == "__main__":
    main()
