"""Averages, intervals and tests, against values worked out apart from the code."""

import itertools
import math

import pytest

from baichuan.evaluate.score import Tally, averaged, macro, mcnemar, micro, paired, pick


def test_the_first_of_equal_scores_wins():
    assert pick([1.0, 3.0, 3.0, 2.0]) == 1
    assert pick([-100.0] * 4) == 0


def test_micro_and_macro_weigh_differently():
    tallies = [Tally(9, 10), Tally(10, 90)]
    assert micro(tallies).value == pytest.approx(0.19)
    assert macro(tallies).value == pytest.approx((0.9 + 1 / 9) / 2)


def test_wilsons_interval():
    """The bounds p solve |share - p| = z sqrt(p (1 - p) / n)."""
    interval = micro([Tally(81, 263)])
    for bound in (interval.low, interval.high):
        z = abs(81 / 263 - bound) / math.sqrt(bound * (1 - bound) / 263)
        assert z == pytest.approx(1.959964, abs=1e-5)
    assert micro([Tally(0, 20)]).low == 0
    assert micro([Tally(20, 20)]).high == 1
    assert micro([Tally(20, 20)]).low < 0.9


def test_the_macro_interval_narrows_with_more_questions_and_subjects():
    def width(right, total, subjects):
        interval = macro([Tally(right, total)] * subjects)
        return interval.high - interval.low

    assert width(50, 100, 1) == pytest.approx(2 * 1.959964 * 0.05, rel=1e-3)
    assert width(50, 100, 4) == pytest.approx(width(50, 100, 1) / 2)
    assert width(100, 100, 1) > 0


def test_categories_average_what_was_asked():
    tallies = {"law": Tally(1, 2), "logic": Tally(4, 4)}
    members = {"Humanities": ["law", "logic", "history"], "STEM": ["physics"]}
    assert averaged(tallies, members, "macro")["Humanities"].value == 0.75
    assert averaged(tallies, members, "micro")["Humanities"].value == pytest.approx(5 / 6)
    assert "STEM" not in averaged(tallies, members, "micro")


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (6, 6), (0, 10)])
def test_mcnemar_counts_coins(gained, lost):
    total = gained + lost
    even = abs(gained - lost)
    throws = list(itertools.product((1, -1), repeat=total))
    assert mcnemar(gained, lost) == sum(abs(sum(t)) >= even for t in throws) / len(throws)


def test_mcnemar_of_thousands():
    assert mcnemar(3000, 3000) == 1
    # 2,600 heads of 5,000: 2.83 standard deviations, less half a throw.
    assert mcnemar(2600, 2400) == pytest.approx(0.00488, rel=0.01)


def test_paired_differences():
    first = {"a": [True, True, False, False], "b": [False] * 10}
    second = {"a": [True, False, True, True], "b": [True] + [False] * 9}
    micro_pair = paired(first, second, "micro")
    assert (micro_pair.gained, micro_pair.lost, micro_pair.total) == (3, 1, 14)
    assert micro_pair.difference.value == pytest.approx(2 / 14)
    macro_pair = paired(first, second, "macro")
    assert macro_pair.difference.value == pytest.approx((1 / 4 + 1 / 10) / 2)
    assert macro_pair.p == micro_pair.p == mcnemar(3, 1)
    # Each question's difference is -1, 0 or 1; its variance over n is that of the mean.
    changes = [1] * 3 + [-1] + [0] * 10
    mean = sum(changes) / 14
    spread = math.sqrt(sum((c - mean) ** 2 for c in changes) / 14 / 14)
    assert micro_pair.difference.high - mean == pytest.approx(1.959964 * spread, rel=1e-5)


def test_equal_models():
    answers = {"a": [True, False]}
    same = paired(answers, answers, "micro")
    assert (same.difference.low, same.difference.value, same.difference.high) == (0, 0, 0)
    assert same.p == 1
