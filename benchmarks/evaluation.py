"""Shows that `baichuan eval` predicts what one prompt at a time predicts, and how much sooner.

    python benchmarks/evaluation.py cmmlu FOLDER [--subjects a,b]        the demo model
    python benchmarks/evaluation.py mmlu FOLDER --smollm FILE.gguf DIR   SmolLM2-135M: see smollm.py

The other side is written out here: transformers' own forward, no batch, the four letters' logits
of the last position. The demo model gets each prompt whole; SmolLM2, which transformers loads from
its GGUF as its own LLaMA class, keeps the cache of the examples of a subject, as 14,042 whole
prompts would take two cores a working day. Nothing of `baichuan.evaluate.scorers` is used there.

Writes results/evaluation_NAME.json: both accuracies, in how many questions they agree, how near to
a tie each other one is, and the seconds of both sides, tokenizing included. With SmolLM2 also the
accuracies of int8 and int4. Run it on a machine that rests.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import baichuan
from baichuan.checkpoint.load import DEMO
from baichuan.evaluate.data import LETTERS, Data, read_data
from baichuan.evaluate.prompts import Prompt, PromptMaker, Scheme, scheme_of
from baichuan.evaluate.results import Answer
from baichuan.evaluate.score import Tally, macro, micro, paired, pick
from baichuan.evaluate.scorers import BaichuanScorer, letter_ids
from baichuan.evaluate.subjects import BENCHMARKS

Scores = list[tuple[float, ...]]


class OneByOne:
    """A model of transformers, a prompt at a time."""

    def __init__(self, model: Any, tokenizer: Any, scheme: Scheme, keep_examples: bool) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._letters = letter_ids(tokenizer, scheme.letter)
        self._keep_examples = keep_examples

    @torch.inference_mode()
    def scores(self, prompts: Sequence[Prompt]) -> Scores:
        """Score the prompts of a subject in their order."""
        rows = [self._tokenizer.encode(prompt.content) for prompt in prompts]
        known: dict[object, tuple[list[int], Any]] = {}
        found = []
        for prompt, ids in zip(prompts, rows, strict=True):
            cache, held = None, 0
            if self._keep_examples:
                if prompt.beginning not in known:
                    known[prompt.beginning] = self._examples(prompt, prompts, rows)
                beginning, kept = known[prompt.beginning]
                assert ids[: len(beginning)] == beginning
                cache, held = copy.deepcopy(kept), len(beginning)
            rest = torch.tensor([ids[held:]])
            logits = self._model(rest, past_key_values=cache, logits_to_keep=1).logits[0, -1]
            found.append(tuple(logits[self._letters].float().tolist()))
        return found

    def _examples(
        self, prompt: Prompt, prompts: Sequence[Prompt], rows: Sequence[list[int]]
    ) -> tuple[list[int], Any]:
        """Compute what all prompts with the same examples begin with, but for a last token."""
        alike = [
            ids
            for other, ids in zip(prompts, rows, strict=True)
            if other.beginning == prompt.beginning
        ]
        count = 0
        while count < min(map(len, alike)) - 1 and len({ids[count] for ids in alike}) == 1:
            count += 1
        beginning = alike[0][:count]
        if not count:
            return [], None
        return beginning, self._model(torch.tensor([beginning]), use_cache=True).past_key_values


def together(scorer: BaichuanScorer, prompts: Sequence[Prompt]) -> Scores:
    """Score the prompts of a subject as `baichuan eval` does."""
    found: dict[int, tuple[float, ...]] = {}
    for batch in scorer.scores(prompts, ()):
        found |= batch
    return [found[index] for index in range(len(prompts))]


def timed(
    data: Data, maker: PromptMaker, score: Callable[[list[Prompt]], Scores]
) -> tuple[dict[str, list[Answer]], dict[str, Scores], float]:
    """Score all subjects; give predictions, scores and seconds."""
    answers, scores = {}, {}
    started = time.perf_counter()
    for subject, rows in data.questions.items():
        prompts = [maker.prompt(row, data.shots[subject]) for row in rows]
        scores[subject] = score(prompts)
        pairs = zip(prompts, scores[subject], strict=True)
        answers[subject] = [Answer.of(prompt, four) for prompt, four in pairs]
    return answers, scores, time.perf_counter() - started


def accuracy(answers: dict[str, list[Answer]], scheme: Scheme) -> float:
    """Average as the scheme does."""
    tallies = [Tally(sum(a.right for a in rows), len(rows)) for rows in answers.values()]
    return (micro if scheme.average == "micro" else macro)(tallies).value


def disagreements(ours: dict[str, Scores], theirs: dict[str, Scores]) -> list[dict[str, Any]]:
    """List the questions of different predictions, with how far the other side was from ours."""
    found = []
    for subject in ours:
        for number, (a, b) in enumerate(zip(ours[subject], theirs[subject], strict=True)):
            first, second = pick(a), pick(b)
            if first != second:
                letters = [LETTERS[first], LETTERS[second]]
                margins = [a[first] - a[second], b[second] - b[first]]
                found.append(
                    {"subject": subject, "row": number, "letters": letters, "margins": margins}
                )
    return found


def figures(benchmark: str, folder: str, subjects: list[str], smollm: list[str] | None) -> Any:
    """Measure both sides."""
    scheme = scheme_of(benchmark, "official")
    data = read_data(BENCHMARKS[benchmark], folder, subjects=subjects)
    if smollm is None:
        model, tokenizer = baichuan.load()
        other = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
        by_one = OneByOne(other, AutoTokenizer.from_pretrained(DEMO), scheme, False)
    else:
        gguf, directory = map(Path, smollm)
        where = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        other = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        by_one = OneByOne(other, tokenizer, scheme, True)
    scorer = BaichuanScorer(model, tokenizer, scheme.letter)
    maker = PromptMaker(scheme, data.benchmark.names, count=scorer.count)
    ours, scores, seconds = timed(data, maker, lambda prompts: together(scorer, prompts))
    theirs, their_scores, their_seconds = timed(data, maker, by_one.scores)
    differing = disagreements(scores, their_scores)
    count = sum(map(len, ours.values()))
    return {
        "benchmark": benchmark,
        "model": "demo" if smollm is None else Path(smollm[0]).name,
        "questions": count,
        "subjects": list(data.questions),
        "accuracy": accuracy(ours, scheme),
        "accuracy_one_by_one": accuracy(theirs, scheme),
        "agreement": 1 - len(differing) / count,
        "disagreements": differing,
        "largest_difference": max(
            abs(a - b)
            for subject in scores
            for pair in zip(scores[subject], their_scores[subject], strict=True)
            for a, b in zip(*pair, strict=True)
        ),
        "seconds": seconds,
        "seconds_one_by_one": their_seconds,
        "times_as_fast": their_seconds / seconds,
        "quantized": {}
        if smollm is None
        else quantized(Path(smollm[1]), scorer, data, maker, ours),
    }


def quantized(
    smollm: list[str],
    tokenizer: Any,
    data: Data,
    maker: PromptMaker,
    answers: dict[str, list[Answer]],
) -> dict[str, Any]:
    """Give accuracy and paired difference of int8 and int4."""
    directory = Path(smollm[1])
    scheme = scheme_of(data.benchmark.name, "official")
    found = {}
    for bits in (8, 4):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).quantize(bits)
        scorer = BaichuanScorer(model, tokenizer, scheme.letter)
        theirs, _, _ = timed(data, maker, lambda prompts, s=scorer: together(s, prompts))
        right = [{s: [a.right for a in rows] for s, rows in x.items()} for x in (answers, theirs)]
        pair = paired(*right, scheme.average)
        found[f"int{bits}"] = {
            "accuracy": accuracy(theirs, scheme),
            "difference": [pair.difference.low, pair.difference.value, pair.difference.high],
            "gained": pair.gained,
            "lost": pair.lost,
            "mcnemar_p": pair.p,
        }
    return found


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=sorted(BENCHMARKS))
    parser.add_argument("folder", help="the data set")
    parser.add_argument("--subjects", default="", help="only these, parted by commas")
    parser.add_argument("--smollm", nargs=2, metavar=("GGUF", "DIRECTORY"))
    arguments = parser.parse_args()
    subjects = [name for name in arguments.subjects.split(",") if name]
    found = figures(arguments.benchmark, arguments.folder, subjects, arguments.smollm)
    name = "smollm" if arguments.smollm else "demo"
    machine.save(f"evaluation_{arguments.benchmark}_{name}{'_part' if subjects else ''}", found)


if __name__ == "__main__":
    main()
