"""The bar of commands that rewrite a checkpoint, and how to go on when one is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from baichuan.language import translate


@contextmanager
def watched(name: str, *, resumes: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Give what takes (bytes done, all bytes); it draws the bar from its first call on.

    Args:
        name: what the bar is called.
        resumes: whether the same command goes on where it was stopped.
    """
    notes = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    bar = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=notes)
    task = bar.add_task(name, total=None)
    with ExitStack() as drawn:

        def advance(done: int, total: int) -> None:
            if not done:  # all is checked
                drawn.enter_context(bar)
            bar.update(task, completed=done, total=total)

        try:
            yield advance
        except KeyboardInterrupt:
            drawn.close()
            if resumes:
                notes.print(translate("stopped; the same command goes on from here."))
            else:
                notes.print(translate("Stopped; nothing is kept, the same command begins anew."))
            raise
