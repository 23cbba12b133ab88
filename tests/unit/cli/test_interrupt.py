"""Ctrl+C while an answer is computed, with real signals."""

import os
import signal

import pytest

from baichuan.cli.interrupt import Interruptible
from baichuan.engine.steps import Step, Usage

STEP = Step(0, 5, "word", None, Usage(1, 0, 1, 1.0, 1.0))


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_breaks_into_a_computation_and_lets_it_clean_up():
    events = []

    def steps():
        try:
            yield STEP
            press_ctrl_c()
            events.append("never reached")
            yield STEP
        finally:
            press_ctrl_c()  # a second one must not disturb the putting away
            events.append("cleaned")

    with Interruptible(steps()) as answer:
        assert list(answer) == [STEP]
    assert answer.stopped
    assert events == ["cleaned"]


def test_does_not_break_into_drawing():
    events = []

    def steps():
        try:
            yield STEP
            yield STEP
        finally:
            events.append("cleaned")

    with Interruptible(steps()) as answer:
        for _ in answer:
            press_ctrl_c()
            events.append("drawn")
    assert answer.stopped
    assert events == ["drawn", "cleaned"]


def test_without_ctrl_c_nothing_differs_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interruptible(iter_steps(3)) as answer:
        assert len(list(answer)) == 3
    assert not answer.stopped
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_an_error_passes_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)

    def steps():
        yield STEP
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"), Interruptible(steps()) as answer:
        list(answer)
    assert signal.getsignal(signal.SIGINT) is before


def iter_steps(count: int):
    for _ in range(count):
        yield STEP
