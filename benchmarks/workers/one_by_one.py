"""Scores letters with transformers alone, a prompt at a time: what `baichuan eval` is held against.

    python one_by_one.py MODEL PROMPTS OUT --letters last|piece [--gguf FILE]

PROMPTS has a line of JSON for each prompt, its text. OUT gets a line for each: the prompt's number
and the logits of A to D at the last position, in float32; a run that was ended goes on with those
that have no whole line. The text of the prompts is all that this has in common with the package.
A Baichuan checkpoint has its network from the package, of course, by transformers' Auto classes.

The prompts are taken in the order of their tokens, and what one begins with like the one before
stays in transformers' own cache: 14,042 whole prompts would keep two cores busy for a day.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import baichuan  # noqa: F401  # makes the Auto classes know the architecture


class OneByOne:
    """A causal model of transformers.

    Args:
        model: in evaluation mode.
        tokenizer: of transformers.
        letters: "piece": the vocabulary's entries A, B, C and D; "last": the last id of each text.
    """

    def __init__(self, model: Any, tokenizer: Any, letters: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        if letters == "piece":
            self._letters = tokenizer.convert_tokens_to_ids(list("ABCD"))
        else:
            self._letters = [tokenizer(letter).input_ids[-1] for letter in "ABCD"]

    @torch.inference_mode()
    def score(self, text: str) -> list[float]:
        """Score one prompt, whole."""
        ids = self._tokenizer(text, return_tensors="pt").input_ids
        return self._letters_of(self._model(input_ids=ids, logits_to_keep=1))

    @torch.inference_mode()
    def score_sorted(self, texts: dict[int, str]) -> Iterator[tuple[int, list[float]]]:
        """Score numbered prompts; each computes what it does not share with the one before."""
        rows = sorted((self._tokenizer(text).input_ids, number) for number, text in texts.items())
        cache, before = DynamicCache(), []
        for ids, number in rows:
            shared = _shared(before, ids[:-1])
            cache.crop(shared - len(before))
            rest = torch.tensor([ids[shared:]])
            output = self._model(input_ids=rest, past_key_values=cache, logits_to_keep=1)
            yield number, self._letters_of(output)
            before = ids

    def _letters_of(self, output: Any) -> list[float]:
        found: list[float] = output.logits[0, -1, self._letters].float().tolist()
        return found


def _shared(one: list[int], other: list[int]) -> int:
    """Count the tokens that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def load(model: str, gguf: str | None = None) -> tuple[Any, Any]:
    """Load network and tokenizer, float32."""
    where = {} if gguf is None else {"gguf_file": gguf}
    tokenizer = AutoTokenizer.from_pretrained(model, **where)
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **where), tokenizer


def main() -> None:
    """Score what is not scored yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--letters", choices=("last", "piece"), required=True)
    parser.add_argument("--gguf")
    arguments = parser.parse_args()
    with arguments.prompts.open(encoding="utf-8") as lines:
        texts = dict(enumerate(map(json.loads, lines)))
    for number in _known(arguments.out):
        del texts[number]
    scorer = OneByOne(*load(arguments.model, arguments.gguf), arguments.letters)
    with arguments.out.open("a", encoding="utf-8") as out:
        for line in scorer.score_sorted(texts):
            out.write(json.dumps(line) + "\n")
            out.flush()


def _known(path: Path) -> list[int]:
    """Read which prompts are scored, and cut off a line that was not finished."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return [json.loads(line)[0] for line in whole.splitlines()]


if __name__ == "__main__":
    main()
