"""A clean end of the interpreter while other threads compute. Knows threads only.

When Python ends, it stops every daemon thread at the next line that the thread would run. One that
is inside torch then unwinds C++ code that must not be unwound, and the process aborts ("terminate
called without an active exception"). So the threads that compute are held between two steps before.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: How long the end waits for steps under way; a step of a large network takes seconds.
_PATIENCE = 60.0

_changed = threading.Condition()
_at_work: dict[int, int] = {}  # threads that compute, and how deeply
_ending = False


@contextmanager
def computing() -> Iterator[None]:
    """Mark a part that the end of the interpreter waits for; any thread, also nested.

    Once the interpreter ends, other threads than the main one stay at the beginning for good.
    """
    thread = threading.get_ident()
    with _changed:
        if _ending and thread not in _at_work and not _is_main():
            _changed.wait_for(lambda: False)
        _at_work[thread] = _at_work.get(thread, 0) + 1
    try:
        yield
    finally:
        with _changed:
            _at_work[thread] -= 1
            if not _at_work[thread]:
                del _at_work[thread]
                _changed.notify_all()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _forget_threads() -> None:
    global _changed
    _changed = threading.Condition()
    _at_work.clear()


if hasattr(os, "register_at_fork"):  # the other threads are not in the child
    os.register_at_fork(after_in_child=_forget_threads)


@atexit.register
def _wait_for_threads() -> None:
    global _ending
    with _changed:
        _ending = True
        _changed.wait_for(lambda: not _at_work.keys() - {threading.get_ident()}, _PATIENCE)
