"""Loads a full-width checkpoint of random weights and measures it: time, memory, speed.

    python benchmarks/full_size.py --layers 8 --directory DIRECTORY

40 layers are Baichuan-13B itself (26.5 GB in bfloat16); fewer fit into less memory. Writes
results/full_size_LAYERS.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import machine
import torch
from random_checkpoint import write_random_checkpoint

from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

_PROMPTS = (128, 512)
_REPEATS = 3


def main() -> None:
    """Make the checkpoint where it is not there yet, load it, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--decode", type=int, default=16, help="tokens to generate")
    arguments = parser.parse_args()
    config = BaichuanConfig.preset("13b", num_hidden_layers=arguments.layers)
    written = _timed(lambda: write_random_checkpoint(arguments.directory, config))
    writing_peak = machine.peak_memory_gb()
    begin = time.perf_counter()
    model = BaichuanForCausalLM.from_pretrained(arguments.directory, dtype="auto")
    loaded = time.perf_counter() - begin
    figures = {
        "model": f"Baichuan-13B geometry, {arguments.layers} of 40 layers, random, bfloat16",
        "parameters": sum(p.numel() for p in model.parameters()),
        "file_gb": sum(f.stat().st_size for f in arguments.directory.glob("*.safetensors")) / 1e9,
        "write_seconds": written,
        "write_peak_memory_gb": writing_peak,
        "load_seconds": loaded,
        "load_own_memory_gb": machine.memory_gb("RssAnon"),
        "load_mapped_memory_gb": machine.memory_gb("RssFile"),
        **_speeds(model, arguments.decode),
        "peak_memory_gb": machine.peak_memory_gb(),
    }
    machine.save(f"full_size_{arguments.layers}", figures)


def _timed(action: Any) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _speeds(model: BaichuanForCausalLM, decode: int) -> dict[str, Any]:
    """Time prompts of several lengths and the tokens after them, each a few times."""
    engine = Engine(model, str, speculate=False)
    params = SamplingParams(max_tokens=decode, eos_token_ids=())
    _run(engine, 16, SamplingParams(max_tokens=2, eos_token_ids=()))  # the weights' first read
    figures: dict[str, Any] = {}
    for length in _PROMPTS:
        usages = [_run(engine, length, params) for _ in range(_REPEATS)]
        figures[f"prefill_{length}_tokens_per_second"] = _spread(u.prefill_speed for u in usages)
        figures[f"decode_after_{length}_tokens_per_second"] = _spread(
            u.decode_speed for u in usages
        )
    return figures


def _run(engine: Engine, length: int, params: SamplingParams) -> Any:
    prompt = torch.randint(649, 64_000, (length,)).tolist()
    *_, last = engine.generate(prompt, params)
    return last.usage


def _spread(values: Any) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "lowest": ordered[0],
        "highest": ordered[-1],
    }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
