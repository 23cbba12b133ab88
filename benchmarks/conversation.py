"""What the prompt cache saves in a long conversation: time to the first token of each of ten turns.

    python benchmarks/conversation.py --directory DIRECTORY [--layers 8]

Full-width random weights; the same ten turns with the conversation's cache and without, taken
alternately. Writes results/conversation.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import machine
import torch
from random_checkpoint import write_random_checkpoint

from baichuan.engine.cache import SequenceCache
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

_TURNS = 10
_ASKED = 80
_ANSWERED = 20


def main() -> None:
    """Talk ten turns twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    config = BaichuanConfig.preset("13b", num_hidden_layers=arguments.layers)
    write_random_checkpoint(arguments.directory, config)
    model = BaichuanForCausalLM.from_pretrained(arguments.directory, dtype="auto")
    engine = Engine(model, str, speculate=False)
    list(engine.generate([1] * 16, SamplingParams(max_tokens=2)))  # the weights' first read
    rows = _talk(engine, model.new_cache())
    shape = f"Baichuan-13B geometry, {arguments.layers} of 40 layers, random, bfloat16"
    turns = f"{_ASKED} tokens asked and {_ANSWERED} answered per turn"
    machine.save("conversation", {"model": shape, "turns": turns, "rows": rows})


def _talk(engine: Engine, cache: SequenceCache) -> list[dict[str, Any]]:
    """Answer each turn with the cache and from nothing; both continue with the same answer."""
    history: list[int] = []
    rows = []
    for turn in range(1, _TURNS + 1):
        history += torch.randint(649, 64_000, (_ASKED,)).tolist()
        params = SamplingParams(max_tokens=_ANSWERED, eos_token_ids=())
        kept = list(engine.generate(history, params, cache))
        afresh = list(engine.generate(history, params.changed(max_tokens=1)))
        history += [step.token for step in kept]
        with_cache, without = kept[-1].usage, afresh[-1].usage
        rows.append(
            {
                "turn": turn,
                "prompt_tokens": with_cache.prompt_tokens,
                "cached_tokens": with_cache.cached_tokens,
                "first_token_seconds": round(with_cache.prefill_seconds, 3),
                "first_token_seconds_without": round(without.prefill_seconds, 3),
                "same_first_token": kept[0].token == afresh[0].token,
            }
        )
    return rows


if __name__ == "__main__":
    main()
