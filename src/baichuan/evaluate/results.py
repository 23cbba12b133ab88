"""A finished evaluation: every prediction, and the averages that follow from them; its JSON file.

The file holds nothing that changes from run to run, no time and no date: the same evaluation gives
the same bytes, however often it was interrupted and however many processes shared it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baichuan.errors import DataError
from baichuan.evaluate.data import LETTERS
from baichuan.evaluate.prompts import Prompt
from baichuan.evaluate.score import Average, Interval, Tally, averaged, macro, micro, pick
from baichuan.evaluate.subjects import BENCHMARKS, Benchmark
from baichuan.files import read_text
from baichuan.outputs import write_output

#: Decimals of scores in files: enough to see a near tie.
_DECIMALS = 4


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on.

    Attributes:
        benchmark, scheme, split: by name.
        average: how the scheme averages, "micro" or "macro".
        shots: examples per prompt, unless shortened.
        subjects: those asked; empty for all.
        limit: questions per subject, or None for all.
        chat: whether prompts are messages.
        letter: which token stands for a letter.
        bos: whether `<s>` stands before a text; None is the tokenizer's own way.
        max_length: tokens beyond which prompts are shortened; None where they were not counted.
        seed: of the examples' order, where the scheme shuffles.
        model: its name, for people.
        backend: "baichuan", "transformers", or a server's address.
        dtype: of the weights that are not quantized; None for a server.
        bits: of quantized weights, or None.
        data: SHA-256 of the rows.
        checkpoint: digest of weights, configuration and tokenizer (`baichuan.digest`); None for a
            server.
        adapter: the same of an adapter, or None.
        served: what a server says of its model, without times; None elsewhere.
    """

    benchmark: str
    scheme: str
    split: str
    average: Average
    shots: int
    subjects: tuple[str, ...]
    limit: int | None
    chat: bool
    letter: str
    bos: bool | None
    max_length: int | None
    seed: int
    model: str
    backend: str
    dtype: str | None
    bits: int | None
    data: str
    checkpoint: str | None = None
    adapter: str | None = None
    served: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Settings:
        """Read what `asdict` gave, by way of JSON."""
        return cls(**{**saved, "subjects": tuple(saved["subjects"])})

    def differing(self, other: Settings) -> list[str]:
        """Name what differs, with both values."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name}: {_shown(theirs[name])} ≠ {_shown(mine[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]


def _shown(value: object) -> str:
    """Shorten a digest to what tells it from another."""
    return re.sub(r"^'([0-9a-f]{12})[0-9a-f]{52}'$", r"\1…", repr(value))


@dataclass(frozen=True)
class Answer:
    """What was predicted for one question.

    Attributes:
        subject, number: which question.
        answer: the right letter; None where the data do not say.
        prediction: the letter with the highest score.
        scores: of A to D: logits, or log-probabilities of a server.
        shots: examples that were in the prompt.
    """

    subject: str
    number: str
    answer: str | None
    prediction: str
    scores: tuple[float, ...]
    shots: int

    @classmethod
    def of(cls, prompt: Prompt, scores: tuple[float, ...]) -> Answer:
        """Predict from a prompt's scores."""
        asked = prompt.question
        prediction = LETTERS[pick(scores)]
        rounded = tuple(round(score, _DECIMALS) for score in scores)
        return cls(
            asked.subject, asked.number, asked.answer, prediction, rounded, len(prompt.shots)
        )

    @property
    def right(self) -> bool:
        """Whether the prediction is the right letter."""
        return self.prediction == self.answer


@dataclass(frozen=True)
class Result:
    """An evaluation."""

    settings: Settings
    answers: list[Answer]
    remarks: list[str]

    @property
    def benchmark(self) -> Benchmark:
        """Which it is of."""
        return BENCHMARKS[self.settings.benchmark]

    @property
    def scored(self) -> bool:
        """Whether the data say which answers are right."""
        return all(answer.answer is not None for answer in self.answers)

    def tallies(self) -> dict[str, Tally]:
        """Count right answers per subject."""
        found: dict[str, Tally] = {}
        for answer in self.answers:
            before = found.get(answer.subject, Tally(0, 0))
            found[answer.subject] = Tally(before.right + answer.right, before.total + 1)
        return found

    def right(self) -> dict[str, list[bool]]:
        """Say for each subject which questions were right."""
        found: dict[str, list[bool]] = {}
        for answer in self.answers:
            found.setdefault(answer.subject, []).append(answer.right)
        return found

    def columns(self, average: Average | None = None) -> dict[str, Interval]:
        """Give the README's columns, "Average" last.

        Args:
            average: over questions or subjects; None is the scheme's own way.
        """
        chosen = average or self.settings.average
        tallies = self.tallies()
        over = micro if chosen == "micro" else macro
        columns = averaged(tallies, self.benchmark.members, chosen)
        ordered = {name: columns[name] for name in self.benchmark.categories if name in columns}
        return {**ordered, "Average": over(list(tallies.values()))}

    def to_dict(self) -> dict[str, Any]:
        """Give what is saved."""
        saved: dict[str, Any] = {"settings": asdict(self.settings)}
        if self.scored:
            tallies = self.tallies()
            for average in ("micro", "macro"):
                columns = self.columns(average) | averaged(tallies, self.benchmark.extras, average)
                saved[average] = {name: _rounded(interval) for name, interval in columns.items()}
            saved["subjects"] = {
                name: {**asdict(tally), "accuracy": _rounded(micro([tally]))}
                for name, tally in tallies.items()
            }
        saved["remarks"] = self.remarks
        saved["questions"] = [asdict(answer) for answer in self.answers]
        return saved

    def submission(self) -> dict[str, dict[str, str]]:
        """Give predictions as C-Eval's site takes them: subject to number to letter."""
        found: dict[str, dict[str, str]] = {}
        for answer in self.answers:
            found.setdefault(answer.subject, {})[answer.number] = answer.prediction
        return found

    def save(self, target: Path) -> None:
        """Write the JSON file at one stroke."""
        write_json(target, self.to_dict())


def write_json(target: Path, content: object) -> None:
    """Write JSON at one stroke.

    Raises:
        UsageError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_output(target, text.encode() + b"\n")


def read_result(path: Path) -> Result:
    """Read what `Result.save` wrote.

    Raises:
        DataError: the file cannot be read or is none of these.
    """
    try:
        saved = json.loads(read_text(path))
        answers = [
            Answer(**{**question, "scores": tuple(question["scores"])})
            for question in saved["questions"]
        ]
        return Result(Settings.from_dict(saved["settings"]), answers, saved["remarks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "{path} is no result of `baichuan eval` ({reason}). Give the JSON file that it wrote.",
            path=path,
            reason=error,
        ) from error


def _rounded(interval: Interval) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(interval).items()}
