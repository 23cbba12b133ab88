"""Ctrl+C while an answer is computed: it ends the answer, once, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from baichuan.engine.steps import Step


class Interruptible(Iterator[Step]):
    """Steps of an answer that Ctrl+C ends like their natural end; use as a context manager.

    A pass over a long prompt may take minutes, so Ctrl+C breaks into the computation; while a step
    is being shown it only takes note, so that no line is drawn by half. Further ones are ignored
    until the answer is put away.

    Attributes:
        stopped: whether Ctrl+C ended the answer.
    """

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps
        self._computing = False
        self._previous: Any = None
        self.stopped = False

    def __enter__(self) -> Interruptible:
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._steps.close()  # type: ignore[attr-defined]  # a generator
        finally:
            signal.signal(signal.SIGINT, self._previous)

    def __next__(self) -> Step:
        try:
            return self._compute()
        except KeyboardInterrupt:
            raise StopIteration from None

    def _compute(self) -> Step:
        if self.stopped:
            raise StopIteration
        try:
            self._computing = True
            return next(self._steps)
        finally:
            self._computing = False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._computing:
            self._computing = False
            raise KeyboardInterrupt
