"""Shows that `baichuan eval` judges a trained network, which is not ours, as another scorer does.

    python benchmarks/evaluation_smollm.py MMLU WORK --gguf FILE

SmolLM2-135M on all of MMLU, on transformers' own LlamaForCausalLM, read from the GGUF; ours is that
file converted by smollm.py, in float32. MMLU is the data set's folder; WORK keeps what is done, a
batch at a time, so this may be ended (kill -9) and started again. The other side is
workers/one_by_one.py, which keeps in transformers' cache what prompts begin with, for 14,042 whole
prompts would take a day; so there are no times. `--only` computes one side, so that several
processes share the work.

int8 and int4 of the same network follow. WORK/float32.json, int8.json and int4.json are results as
`baichuan eval compare` takes them.

Writes results/evaluation_smollm.json. The other side's scores of all questions, which take a core
two hours, are results/evaluation_smollm_one_by_one.jsonl.xz: unpacked as WORK/one_by_one.jsonl,
they are not computed again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import machine
import torch
from evaluation import Scores, compare
from smollm import convert
from transformers import AutoTokenizer

from baichuan.digest import file_digest
from baichuan.evaluate.data import Data, read_data
from baichuan.evaluate.prompts import PromptMaker, Scheme, scheme_of
from baichuan.evaluate.results import Answer, Result, Settings, read_result
from baichuan.evaluate.run import evaluate
from baichuan.evaluate.score import paired
from baichuan.evaluate.scorers import BaichuanScorer, Encoder
from baichuan.evaluate.subjects import BENCHMARKS
from baichuan.model.network import BaiChuanForCausalLM

_WORKER = Path(__file__).parent / "workers" / "one_by_one.py"


def measure(folder: str, work: Path, gguf: Path, only: str | None) -> None:
    """Score MMLU with SmolLM2: transformers' LLaMA, then ours in float32, int8 and int4."""
    scheme = scheme_of("mmlu", "official")
    data = read_data(BENCHMARKS["mmlu"], folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if only in (None, "theirs"):
        maker = PromptMaker(
            scheme, data.benchmark.names, count=Encoder(tokenizer, scheme.letter).count
        )
        _one_by_one(data, maker, work, gguf)
    for bits in (None, 8, 4):
        if only in (None, _name(bits)):
            _ours(data, scheme, work, gguf, tokenizer, bits)
    if only is None:
        machine.save("evaluation_smollm", _summary(data, scheme, work, gguf))


def _name(bits: int | None) -> str:
    return f"int{bits}" if bits else "float32"


def _one_by_one(data: Data, maker: PromptMaker, work: Path, gguf: Path) -> None:
    prompts = work / "prompts.jsonl"
    if not prompts.exists():
        lines = [
            json.dumps(maker.prompt(row, data.shots[subject]).content)
            for subject, rows in data.questions.items()
            for row in rows
        ]
        partial = prompts.with_suffix(".partial")
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(prompts)
    command = [sys.executable, _WORKER, gguf.parent, prompts, work / "one_by_one.jsonl"]
    settings = ["--letters", "last", "--gguf", gguf.name]
    subprocess.run([*map(str, command), *settings], check=True)


def _ours(
    data: Data, scheme: Scheme, work: Path, gguf: Path, tokenizer: Any, bits: int | None
) -> None:
    """Write a result as `baichuan eval mmlu` does, or go on with it."""
    target = work / f"{_name(bits)}.json"
    if target.exists():
        return
    convert(gguf, work / "checkpoint")
    model = BaiChuanForCausalLM.from_pretrained(work / "checkpoint", dtype=torch.float32)
    if bits is not None:
        model.quantize(bits)
    settings = Settings(
        benchmark="mmlu",
        scheme=scheme.name,
        split=data.split,
        average=scheme.average,
        shots=5,
        subjects=(),
        limit=None,
        chat=False,
        letter=scheme.letter,
        bos=None,
        max_length=2048,
        seed=0,
        model="SmolLM2-135M-Instruct",
        backend="baichuan",
        dtype="float32",
        bits=bits,
        data=data.digest,
        checkpoint=file_digest(gguf),
    )
    scorer = BaichuanScorer(model, tokenizer, scheme.letter)
    maker = PromptMaker(scheme, data.benchmark.names, count=scorer.count)
    evaluate(settings, data, scorer, maker, target, lambda done, total, _: _say(done, total))


def _say(done: int, total: int) -> None:
    print(f"{done} of {total}", end="\r", file=sys.stderr, flush=True)


def _summary(data: Data, scheme: Scheme, work: Path, gguf: Path) -> dict[str, Any]:
    full, *quantized = (read_result(work / f"{_name(bits)}.json") for bits in (None, 8, 4))
    lines = (work / "one_by_one.jsonl").read_text("utf-8").splitlines()
    found = iter([scores for _, scores in sorted(map(json.loads, lines))])
    theirs = {subject: list(islice(found, len(rows))) for subject, rows in data.questions.items()}
    return {
        "benchmark": "mmlu",
        "model": gguf.name,
        "dtype": "float32",
        **compare(data, scheme.average, _scores(full.answers), theirs),
        **_columns(full),
        "quantized": {
            _name(other.settings.bits): {**_columns(other), **_difference(full, other)}
            for other in quantized
        },
    }


def _columns(result: Result) -> dict[str, dict[str, float]]:
    return {"columns": {name: interval.value for name, interval in result.columns().items()}}


def _scores(answers: list[Answer]) -> Scores:
    found: Scores = {}
    for answer in answers:
        found.setdefault(answer.subject, []).append(list(answer.scores))
    return found


def _difference(full: Result, other: Result) -> dict[str, Any]:
    pair = paired(full.right(), other.right(), full.settings.average)
    same = sum(
        a.prediction == b.prediction for a, b in zip(full.answers, other.answers, strict=True)
    )
    return {
        "difference": [pair.difference.low, pair.difference.value, pair.difference.high],
        "gained": pair.gained,
        "lost": pair.lost,
        "mcnemar_p": pair.p,
        "same_prediction": same / len(full.answers),
    }


def main() -> None:
    """Measure what is not measured yet, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="MMLU's")
    parser.add_argument("work", type=Path, help="folder for what is done")
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2's file")
    parser.add_argument("--only", choices=("theirs", "float32", "int8", "int4"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    measure(**vars(arguments))


if __name__ == "__main__":
    main()
