"""From predictions to accuracies: averages, their confidence intervals, and paired comparisons.

Knows numbers of right answers; no model and no file. Accuracies are shares, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Average = Literal["micro", "macro"]

#: Half the width of a 95 % interval, in standard errors.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """Right answers of so many questions."""

    right: int
    total: int


def pick(scores: Sequence[float]) -> int:
    """Give the place of the highest score; of equal ones the first, as `argmax` does."""
    return max(range(len(scores)), key=lambda place: scores[place])


def micro(tallies: Sequence[Tally]) -> Interval:
    """Average over questions, with Wilson's interval."""
    right, total = (sum(getattr(t, name) for t in tallies) for name in ("right", "total"))
    share = right / total
    middle = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    half /= 1 + _Z**2 / total
    # Rounding must not put a bound on the wrong side of 0 or 1 right answers.
    return Interval(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def macro(tallies: Sequence[Tally]) -> Interval:
    """Average over subjects, with the interval that follows from each subject's own spread.

    A subject's variance is taken at (right + 1) / (total + 2): at the share itself one with no
    wrong answer would have none.
    """
    shares = [t.right / t.total for t in tallies]
    smoothed = [(t.right + 1) / (t.total + 2) for t in tallies]
    variance = sum(p * (1 - p) / t.total for p, t in zip(smoothed, tallies, strict=True))
    value = sum(shares) / len(shares)
    half = _Z * math.sqrt(variance) / len(shares)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def averaged(
    tallies: Mapping[str, Tally], members: Mapping[str, Sequence[str]], average: Average
) -> dict[str, Interval]:
    """Average each category over those of its subjects that were asked; without any, none.

    Args:
        tallies: of each subject.
        members: category to subjects.
        average: over questions or over subjects.
    """
    over = micro if average == "micro" else macro
    found = {
        category: [tallies[subject] for subject in subjects if subject in tallies]
        for category, subjects in members.items()
    }
    return {category: over(group) for category, group in found.items() if group}


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions.

    Attributes:
        gained: questions that the second has right and the first wrong.
        lost: the other way round.
        total: all questions.
        difference: of the averages, second minus first, with its interval.
        p: of McNemar's exact test, two-sided: how likely so uneven a split of the questions on
            which the two differ is, if neither is better.
    """

    gained: int
    lost: int
    total: int
    difference: Interval
    p: float


def paired(
    first: Mapping[str, Sequence[bool]], second: Mapping[str, Sequence[bool]], average: Average
) -> Paired:
    """Compare right and wrong answers question by question.

    Args:
        first, second: subject to whether each question was right; the same questions.
        average: how the difference is averaged; McNemar's test counts questions either way.
    """
    strata = [_strays(first[subject], second[subject]) for subject in first]
    gained, lost, total = (sum(column) for column in zip(*strata, strict=True))
    groups = [(gained, lost, total)] if average == "micro" else strata
    value = sum((g - b) / n for g, b, n in groups) / len(groups)
    variance = sum((g + b - (g - b) ** 2 / n) / n**2 for g, b, n in groups)
    half = _Z * math.sqrt(variance) / len(groups)
    interval = Interval(value, value - half, value + half)
    return Paired(gained, lost, total, interval, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Give the two-sided exact p-value: a fair coin's chance of a split at least so uneven."""
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**total))


def _strays(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int]:
    """Count what the second gained and lost, and all."""
    pairs = list(zip(first, second, strict=True))
    return sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs), len(pairs)
