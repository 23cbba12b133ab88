"""Scores letters with transformers alone, a prompt at a time: what `baichuan eval` is held against.

    python one_by_one.py MODEL PROMPTS OUT --letters last|piece [--gguf FILE] [--keep-examples]

PROMPTS has a line of JSON for each prompt, those of a subject together: {"subject": ..., "text":
...}. OUT gets a line for each, the logits of A to D at the last position, in float32; a run that
was ended goes on behind the last whole line. The text of the prompts is all that this has in
common with the package. A Baichuan checkpoint has its network from the package, of course, by
transformers' Auto classes.

By default each prompt goes through the network whole, as in the benchmarks' own scripts.
`--keep-examples` keeps what the prompts of a subject begin with in transformers' own cache, one
subject at a time: 14,042 whole prompts would keep two cores busy for a day.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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
    def score_behind_examples(self, texts: list[str], skip: int = 0) -> Iterator[list[float]]:
        """Score a subject's prompts but the first `skip`; what all begin with is computed once."""
        rows = [self._tokenizer(text).input_ids for text in texts]
        shared = 0
        while all(shared < len(row) - 1 and row[shared] == rows[0][shared] for row in rows):
            shared += 1
        beginning = torch.tensor([rows[0][:shared]])
        cache = self._model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
        for row in rows[skip:]:
            rest = torch.tensor([row[shared:]])
            yield self._letters_of(
                self._model(input_ids=rest, past_key_values=cache, logits_to_keep=1)
            )
            cache.crop(-rest.shape[1])

    def _letters_of(self, output: Any) -> list[float]:
        found: list[float] = output.logits[0, -1, self._letters].float().tolist()
        return found


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
    parser.add_argument("--keep-examples", action="store_true")
    arguments = parser.parse_args()
    with arguments.prompts.open(encoding="utf-8") as lines:
        asked = [json.loads(line) for line in lines]
    scorer = OneByOne(*load(arguments.model, arguments.gguf), arguments.letters)
    known = _whole_lines(arguments.out)
    with arguments.out.open("a", encoding="utf-8") as out:
        place = 0
        for _, group in groupby(asked, key=lambda row: row["subject"]):
            texts = [row["text"] for row in group]
            left = texts[max(0, known - place) :]
            place += len(texts)
            if not left:
                continue
            found = (
                # All texts, so that the beginning is that of all, wherever the last run ended.
                scorer.score_behind_examples(texts, skip=len(texts) - len(left))
                if arguments.keep_examples
                else map(scorer.score, left)
            )
            for scores in found:
                out.write(json.dumps(scores) + "\n")
                out.flush()


def _whole_lines(path: Path) -> int:
    """Count lines, and cut off one that was not finished."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return whole.count(b"\n")


if __name__ == "__main__":
    main()
