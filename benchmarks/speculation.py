"""What guessing tokens changes: decoding with and without it, in turn.

    python benchmarks/speculation.py CHECKPOINT --figures repeats [--pairs 3] [--tokens 160]
    python benchmarks/speculation.py CHECKPOINT --figures losses draft

CHECKPOINT is a quantized one of any weights, random ones included: what it answers is dictated
token by token (a `Constraint` that allows one), while the passes are as long and as many as they
would be for a network that chose these tokens by itself. Each figure is a file of results/:

- repeats (speculation.json): a text of 600 tokens again, with every 30th token replaced; the text's
  true continuation, with the repetitions that technical prose has; tokens none of which stands in
  prompt or answer before.
- losses (speculation_losses.json): such tokens again; tokens of which any three in a row stand in
  the prompt, but always before another, so that every guess is wrong; the same, but every fifth
  guess is right.
- draft (speculation_draft.json): tokens that the text does not suggest, and a draft of 0.2 billion
  random weights that guesses them rightly in so many of a hundred cases.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor
from tqdm import tqdm

from baichuan.checkpoint.load import DEMO
from baichuan.engine.cache import Chunk, DecoderModel
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.quant.plan import use_huge_pages

_PROMPT, _EDIT_EVERY, _RIGHT_EVERY = 600, 30, 5
_TEXT = Path(__file__).parents[1] / "docs" / "quantization.md"
_FILES = {
    "repeats": "speculation",
    "losses": "speculation_losses",
    "draft": "speculation_draft",
}
_SHARES = (0, 50, 80)


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


class Prompted:
    """A draft that is told the answer in a share of all places; its passes are real ones."""

    def __init__(self, model: BaichuanForCausalLM, text: list[int], share: int) -> None:
        chance = random.Random(0)
        self._model = model
        self._text = [token if chance.random() * 100 < share else None for token in text]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward_chunks(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Run the network and make the token likeliest that is told."""
        places = [len(chunk.cache) + len(chunk.tokens) for chunk in chunks]
        rows = [logits.clone() for logits in self._model.forward_chunks(chunks)]
        for place, logits in zip(places, rows, strict=True):
            token = self._text[place] if place < len(self._text) else None
            if len(logits) and token is not None:
                logits[-1, token] = float("inf")
        return rows


@dataclass
class Task:
    """A dictated answer.

    Attributes:
        prompt, answer: token ids.
        draft: who guesses where the text suggests nothing.
    """

    prompt: list[int]
    answer: list[int]
    draft: DecoderModel | None = None


def repeats(vocabulary: int, tokens: int) -> dict[str, Task]:
    """Give an edited copy, prose, and tokens without any repetition."""
    text = BaichuanTokenizer.from_pretrained(DEMO).encode(_TEXT.read_text("utf-8"))
    chance = random.Random(0)
    copy = text[:tokens]
    for place in range(_EDIT_EVERY - 1, tokens, _EDIT_EVERY):
        copy[place] = chance.randrange(vocabulary)
    return {
        "edit": Task(text[:_PROMPT], copy),
        "prose": Task(text[:_PROMPT], text[_PROMPT : _PROMPT + tokens]),
        "nothing": unlike(vocabulary, tokens),
    }


def unlike(vocabulary: int, tokens: int) -> Task:
    """Give a prompt and an answer of tokens that all differ."""
    some = random.Random(0).sample(range(3, vocabulary), _PROMPT + tokens)
    return Task(some[:_PROMPT], some[_PROMPT:])


def losses(vocabulary: int, tokens: int) -> dict[str, Task]:
    """Give answers at which no guess, or hardly any, is right."""
    some = random.Random(1).sample(range(3, vocabulary), 2 * tokens)
    answer, decoys = some[:tokens], some[tokens:]
    tasks = {"nothing": unlike(vocabulary, tokens)}
    for name, every in (("wrong", tokens), ("fifth", _RIGHT_EVERY)):
        prompt = []
        for place in range(tokens - 3):
            right = place % every == every - 1
            prompt += [*answer[place : place + 3 + right], decoys[place]]
        tasks[name] = Task(prompt, answer)
    return tasks


def drafted(vocabulary: int, tokens: int) -> dict[str, Task]:
    """Give an answer that only the draft may guess, as often as its name says."""
    config = BaichuanConfig(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
    )
    draft = BaichuanForCausalLM(config).to(torch.bfloat16).eval().quantize(4)
    task = unlike(vocabulary, tokens)
    text = task.prompt + task.answer
    return {
        str(share): Task(task.prompt, task.answer, Prompted(draft, text, share))
        for share in _SHARES
    }


class Side:
    """A task with or without guesses; its prompt is computed once."""

    def __init__(self, model: BaichuanForCausalLM, task: Task, speculate: bool) -> None:
        self._task, self._vocabulary = task, model.config.vocab_size
        draft = task.draft if speculate else None
        self._engine = Engine(model, str, speculate=speculate, draft=draft)
        self._cache = model.new_cache()

    def seconds_per_token(self) -> float:
        """Time the answer behind its first token."""
        answer = self._task.answer
        params = SamplingParams(
            max_tokens=len(answer),
            eos_token_ids=(),
            constraint=lambda: Dictation(answer, self._vocabulary),
        )
        *_, last = self._engine.generate(self._task.prompt, params, self._cache)
        return last.usage.decode_seconds / (len(answer) - 1)


def measure(model: BaichuanForCausalLM, tasks: dict[str, Task], pairs: int) -> dict[str, Any]:
    """Time each task's two sides in turn, each of them first in every other pair."""
    ways = {"without": False, "with": True}
    sides = {(n, way): Side(model, task, ways[way]) for n, task in tasks.items() for way in ways}
    for side in sides.values():
        side.seconds_per_token()  # the prompt, and what is slow the first time
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in tasks}
    for pair in tqdm(range(pairs), unit="pair"):
        for name in tasks:
            order = list(ways) if pair % 2 == 0 else list(reversed(ways))
            row = {way: sides[name, way].seconds_per_token() for way in order}
            rows[name].append(row)
            print(name, row, file=sys.stderr)
    ratios = {name: [row["without"] / row["with"] for row in some] for name, some in rows.items()}
    return {
        "times_as_fast": {
            name: {"median": statistics.median(some), "all": sorted(some)}
            for name, some in ratios.items()
        },
        "rows": rows,
    }


def main() -> None:
    """Decode each task in turn with and without guesses, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--figures", nargs="+", choices=_FILES, default=list(_FILES))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    model = BaichuanForCausalLM.from_pretrained(arguments.checkpoint, dtype="bfloat16").eval()
    if not model.exact_rows:
        sys.exit("This is for quantized checkpoints on a CPU with native kernels.")
    use_huge_pages(model)
    makers = {"repeats": repeats, "losses": losses, "draft": drafted}
    for figure in arguments.figures:
        tasks = makers[figure](model.config.vocab_size, arguments.tokens)
        figures = measure(model, tasks, arguments.pairs)
        about = {
            "layers": model.config.num_hidden_layers,
            "prompt_tokens": _PROMPT,
            "answer_tokens": arguments.tokens,
        }
        machine.save(_FILES[figure], {**about, **figures})


if __name__ == "__main__":
    main()
