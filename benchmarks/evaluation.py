"""Shows that `baichuan eval` predicts what one prompt at a time predicts, and how much sooner.

    python benchmarks/evaluation.py demo CMMLU WORK                  the demo model, whole CMMLU
    python benchmarks/evaluation.py lm-eval CMMLU WORK --python PYTHON        against lm-eval

CMMLU is the data set's folder; WORK keeps what is done, a subject at a time, so `demo` may be ended
(`--seconds`, kill -9) and started again until it says that it is through.

The other side is workers/one_by_one.py: transformers, a prompt at a time, sharing nothing with
`baichuan.evaluate` but the prompts' text, both in float32.

- demo: each prompt goes through the network whole. It is loaded by transformers' Auto classes, gets
  `logits_to_keep=1`, so that only the last position's logits are computed, and both sides
  are timed in turn, subject by subject: ours from the rows of the data set to the scores, theirs
  from finished texts to the scores, tokenizing included on both sides.
- lm-eval: the demo model and some subjects in lm-evaluation-harness, in turn with ours; PYTHON is
  the interpreter of an environment that has `lm_eval` and this package. The harness asks in its own
  words, and may use any batch size of those measured: the faster one counts.

Writes results/evaluation_demo.json and evaluation_lm_eval.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import machine
from workers.one_by_one import OneByOne, load

import baichuan
from baichuan.checkpoint.load import DEMO
from baichuan.evaluate.data import LETTERS, Data, read_data
from baichuan.evaluate.prompts import PromptMaker, scheme_of
from baichuan.evaluate.score import Tally, macro, micro, pick
from baichuan.evaluate.scorers import BaichuanScorer
from baichuan.evaluate.subjects import BENCHMARKS

#: Subject to the four scores of each of its questions.
Scores = dict[str, list[list[float]]]

_WORKER = Path(__file__).parent / "workers" / "one_by_one.py"
_LM_EVAL = _WORKER.with_name("lm_eval_cmmlu.py")
#: Few, since the harness needs minutes for them; of different lengths.
_SUBJECTS = ("agronomy", "chinese_foreign_policy", "college_law", "virology")
_BATCH_SIZES = (1, 8)


def compare(data: Data, average: str, ours: Scores, theirs: Scores) -> dict[str, Any]:
    """Give both accuracies, and each question of different predictions with both sides' margins."""
    rows = [
        (subject, number, question, *scores)
        for subject, questions in data.questions.items()
        for number, (question, *scores) in enumerate(
            zip(questions, ours[subject], theirs[subject], strict=True)
        )
    ]
    differing = []
    for subject, number, _, mine, other in rows:
        first, second = pick(mine), pick(other)
        if first != second:
            differing.append(
                {
                    "subject": subject,
                    "row": number,
                    "predictions": [LETTERS[first], LETTERS[second]],
                    "margins": [mine[first] - mine[second], other[second] - other[first]],
                }
            )
    return {
        "questions": len(rows),
        "accuracy": _accuracy(data, average, ours),
        "accuracy_one_by_one": _accuracy(data, average, theirs),
        "agreement": 1 - len(differing) / len(rows),
        "disagreements": differing,
        "largest_difference_of_logits": max(
            abs(a - b) for *_, mine, other in rows for a, b in zip(mine, other, strict=True)
        ),
    }


def _accuracy(data: Data, average: str, scores: Scores) -> float:
    tallies = [
        Tally(
            sum(
                LETTERS[pick(four)] == row.answer
                for row, four in zip(rows, scores[name], strict=True)
            ),
            len(rows),
        )
        for name, rows in data.questions.items()
    ]
    return (micro if average == "micro" else macro)(tallies).value


def demo(folder: str, work: Path, seconds: float) -> None:
    """Score CMMLU with the demo model on both sides in turn."""
    started = time.perf_counter()
    scheme = scheme_of("cmmlu", "official")
    data = read_data(BENCHMARKS["cmmlu"], folder)
    model, tokenizer = baichuan.load()
    scorer = BaichuanScorer(model, tokenizer, scheme.letter)
    maker = PromptMaker(scheme, data.benchmark.names, count=scorer.count)
    one_by_one = OneByOne(*load(str(DEMO)), "piece")
    path = work / "demo.jsonl"
    known = _known(path)
    for subject, rows in data.questions.items():
        if subject in known or time.perf_counter() - started > seconds:
            continue
        prompts = [maker.prompt(row, data.shots[subject]) for row in rows]
        texts = [str(prompt.content) for prompt in prompts]
        if not any(subject in done for done in known):  # the first calls are slower
            one_by_one.score(texts[0])
            next(scorer.scores(prompts, ()))
        found, mine = _timed(lambda s=subject: _together(data, maker, scorer, s))
        other, yours = _timed(lambda t=texts: [one_by_one.score(text) for text in t])
        known[subject] = {"ours": found, "theirs": other, "seconds": [mine, yours]}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"subject": subject, **known[subject]}) + "\n")
        print(f"{subject}: {mine:.2f} s, {yours:.2f} s: {yours / mine:.2f} times", flush=True)
    if len(known) < len(data.questions):
        return
    totals = [sum(entry["seconds"][side] for entry in known.values()) for side in (0, 1)]
    sides = [{s: known[s][side] for s in data.questions} for side in ("ours", "theirs")]
    figures = {
        "benchmark": "cmmlu",
        "model": "demo",
        "dtype": "float32",
        **compare(data, scheme.average, *sides),
        "seconds": totals[0],
        "seconds_one_by_one": totals[1],
        "times_as_fast": totals[1] / totals[0],
        "seconds_of_subjects": {subject: known[subject]["seconds"] for subject in data.questions},
    }
    machine.save("evaluation_demo", figures)


def _together(
    data: Data, maker: PromptMaker, scorer: BaichuanScorer, subject: str
) -> list[tuple[float, ...]]:
    """Score a subject as `baichuan eval` does, its prompts made anew."""
    rows = data.questions[subject]
    prompts = [maker.prompt(row, data.shots[subject]) for row in rows]
    found: dict[int, tuple[float, ...]] = {}
    for batch in scorer.scores(prompts, ()):
        found |= batch
    return [found[index] for index in range(len(rows))]


def _timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _known(path: Path) -> dict[str, Any]:
    """Read what earlier runs scored; a line that was cut off does not count."""
    found = {}
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        path.write_bytes(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            found[entry.pop("subject")] = entry
    return found


def lm_eval(folder: str, work: Path, python: Path) -> None:
    """Time some subjects of CMMLU in turn with lm-evaluation-harness."""
    scheme = scheme_of("cmmlu", "official")
    data = read_data(BENCHMARKS["cmmlu"], folder, subjects=_SUBJECTS)
    model, tokenizer = baichuan.load()
    scorer = BaichuanScorer(model, tokenizer, scheme.letter)
    maker = PromptMaker(scheme, data.benchmark.names, count=scorer.count)
    peers = {
        size: subprocess.Popen(
            [str(python), str(_LM_EVAL), folder, str(work / "tasks"), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for size in _BATCH_SIZES
    }
    _together(data, maker, scorer, _SUBJECTS[0])  # the first calls are slower
    found = {}
    for subject, rows in data.questions.items():
        _, seconds = _timed(lambda s=subject: _together(data, maker, scorer, s))
        theirs = {size: _asked(peer, subject) for size, peer in peers.items()}
        found[subject] = {"questions": len(rows), "seconds": seconds, "lm_eval": theirs}
        print(subject, json.dumps(found[subject]), flush=True)
    for peer in peers.values():
        peer.communicate()
    totals = {
        size: sum(entry["lm_eval"][size]["seconds"] for entry in found.values())
        for size in _BATCH_SIZES
    }
    best = min(totals, key=lambda size: totals[size])
    ours = sum(entry["seconds"] for entry in found.values())
    figures = {
        "benchmark": "cmmlu",
        "model": "demo",
        "dtype": "float32",
        "lm_eval": _version(python),
        "questions": sum(map(len, data.questions.values())),
        "seconds": ours,
        "seconds_lm_eval": totals[best],
        "batch_size_lm_eval": best,
        "times_as_fast": totals[best] / ours,
        "subjects": found,
    }
    machine.save("evaluation_lm_eval", figures)


def _asked(peer: subprocess.Popen[str], subject: str) -> Any:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(subject + "\n")
    peer.stdin.flush()
    return json.loads(peer.stdout.readline())


def _version(python: Path) -> str:
    program = "import importlib.metadata as m; print(m.version('lm_eval'))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Measure what is not measured yet, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("demo", "lm-eval"))
    parser.add_argument("folder", help="the data set")
    parser.add_argument("work", type=Path, help="folder for what is done")
    parser.add_argument("--python", type=Path, help="interpreter that has lm_eval")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no subject after so many"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what == "demo":
        demo(arguments.folder, arguments.work, arguments.seconds)
    else:
        lm_eval(arguments.folder, arguments.work, arguments.python)


if __name__ == "__main__":
    main()
