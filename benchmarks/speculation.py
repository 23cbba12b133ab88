"""What guessing tokens that the text suggests changes: decoding with and without it, in turn.

    python benchmarks/speculation.py CHECKPOINT [--pairs 3] [--tokens 160]

CHECKPOINT is a quantized one of any weights, random ones included: what it answers is dictated
token by token (a `Constraint` that allows one), while the passes are as long and as many as they
would be for a network that chose these tokens by itself. Three answers are dictated:

- edit: a text of 600 tokens again, with every 30th token replaced;
- prose: the text's true continuation, with the repetitions that technical prose has;
- nothing: tokens none of which stands in prompt or answer before.

Writes results/speculation.json.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor
from tqdm import tqdm

from baichuan.checkpoint.load import DEMO
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.quant.plan import use_huge_pages

_PROMPT, _EDIT_EVERY = 600, 30
_TEXT = Path(__file__).parents[1] / "docs" / "quantization.md"


class Dictation:
    """Allows one token at a time; see engine.sampling.Constraint."""

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        self._tokens, self._vocabulary, self._next = tokens, vocabulary, 0

    def allowed(self) -> Tensor:
        """Give the mask of the next token."""
        mask = torch.zeros(self._vocabulary, dtype=torch.bool)
        mask[self._tokens[self._next]] = True
        return mask

    def accept(self, token: int) -> None:
        """Go on to the next token."""
        assert token == self._tokens[self._next]
        self._next += 1


def tasks(vocabulary: int, tokens: int) -> dict[str, tuple[list[int], list[int]]]:
    """Give prompt and answer of each task."""
    text = BaichuanTokenizer.from_pretrained(DEMO).encode(_TEXT.read_text("utf-8"))
    chance = random.Random(0)
    copy = text[:tokens]
    for place in range(_EDIT_EVERY - 1, tokens, _EDIT_EVERY):
        copy[place] = chance.randrange(vocabulary)
    unlike = chance.sample(range(3, vocabulary), _PROMPT + tokens)
    return {
        "edit": (text[:_PROMPT], copy),
        "prose": (text[:_PROMPT], text[_PROMPT : _PROMPT + tokens]),
        "nothing": (unlike[:_PROMPT], unlike[_PROMPT:]),
    }


class Side:
    """The network with or without guesses, and a cache for each task's prompt."""

    def __init__(self, model: BaichuanForCausalLM, speculate: bool) -> None:
        self._model, self._engine = model, Engine(model, str, speculate=speculate)
        self._caches: dict[str, Any] = {}

    def seconds_per_token(self, name: str, prompt: list[int], answer: list[int]) -> float:
        """Time a task's answer behind its first token; the next time, the prompt is there."""
        vocabulary = self._model.config.vocab_size
        params = SamplingParams(
            max_tokens=len(answer),
            eos_token_ids=(),
            constraint=lambda: Dictation(answer, vocabulary),
        )
        cache = self._caches.setdefault(name, self._model.new_cache())
        *_, last = self._engine.generate(prompt, params, cache)
        return last.usage.decode_seconds / (len(answer) - 1)


def main() -> None:
    """Decode each task in turn with and without guesses, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    model = BaichuanForCausalLM.from_pretrained(arguments.checkpoint, dtype="bfloat16").eval()
    if not model.exact_rows:
        sys.exit("This is for quantized checkpoints on a CPU with native kernels.")
    use_huge_pages(model)
    sides = {"without": Side(model, False), "with": Side(model, True)}
    rows: dict[str, list[dict[str, float]]] = {}
    work = tasks(model.config.vocab_size, arguments.tokens)
    for _ in tqdm(range(arguments.pairs), unit="pair"):
        for name, (prompt, answer) in work.items():
            row = {way: side.seconds_per_token(name, prompt, answer) for way, side in sides.items()}
            rows.setdefault(name, []).append(row)
            print(name, row, file=sys.stderr)
    ratios = {name: [row["without"] / row["with"] for row in some] for name, some in rows.items()}
    machine.save(
        "speculation",
        {
            "prompt_tokens": _PROMPT,
            "answer_tokens": arguments.tokens,
            "times_as_fast": {
                name: {"median": statistics.median(some), "all": sorted(some)}
                for name, some in ratios.items()
            },
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
