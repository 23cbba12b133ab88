"""One precision in a process of its own, so that its memory is its own: `python -m` this module.

Arguments: a `Job` as JSON, and the precision. On standard output a line of JSON for each piece of
progress and, last, one with the figures or with the sentence of an error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import IO, Any

import torch

from baichuan.bench.job import Job, empty_network, weight_bytes
from baichuan.bench.measure import compare_positions, measure_speeds
from baichuan.bench.memory import Peak, gpu_peak_bytes
from baichuan.bench.networks import both_positions, loaded_network, random_network
from baichuan.errors import BaichuanError

#: Seconds between two lines of progress, at least: telling must not slow what is told of.
_INTERVAL = 0.1


class Voice:
    """Lines of JSON to the parent process."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._next = 0.0

    def tell(self, stage: str, done: int, total: int) -> None:
        """Tell of progress, unless that was done a moment ago."""
        now = time.monotonic()
        if done in (0, total) or now >= self._next:
            self._next = now + _INTERVAL
            self.send({"stage": stage, "done": done, "total": total})

    def send(self, message: dict[str, Any]) -> None:
        """Send a line; if the parent is gone, this ends the process."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def measured(job: Job, precision: str, voice: Voice) -> dict[str, Any]:
    """Make the network, measure it and give the figures that `results.Figures` names.

    Raises:
        BaichuanError: the checkpoint cannot be loaded.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    peak, load_seconds = Peak(), None
    if job.random is None:
        voice.tell("load", 0, 1)
        began = time.perf_counter()
        model, decode = loaded_network(job, precision)
        load_seconds = time.perf_counter() - began
    else:
        empty = empty_network(job, precision)
        model, decode = random_network(empty, job, lambda d, t: voice.tell("fill", d, t))
    weights = weight_bytes(model)
    # Before the first pass: on a GPU that may put codes in another order.
    networks = both_positions(model) if job.rope else {}
    peak.begin_part()
    speeds = measure_speeds(model, decode, job, voice.tell)
    figures = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_seconds": load_seconds,
        "prefill_seconds": speeds.prefill_seconds,
        "decode_seconds": speeds.decode_seconds,
        "weight_bytes": weights,
        "cache_bytes": speeds.cache_bytes,
        "peak_bytes": peak.bytes,
        "answering_peak_bytes": peak.part_bytes,
        "gpu_peak_bytes": gpu_peak_bytes(job.chosen_device),
        "positions": None,
    }
    if job.rope:
        figures["positions"] = asdict(compare_positions(networks, decode, job, voice.tell))
    return figures


def main() -> None:
    """Measure what the arguments say."""
    # Whatever else may be printed goes to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl+C reaches every process of the terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    voice = Voice(out)
    try:
        voice.send({"figures": measured(Job.from_json(sys.argv[1]), sys.argv[2], voice)})
    except BaichuanError as error:
        voice.send({"error": str(error)})


if __name__ == "__main__":
    main()
