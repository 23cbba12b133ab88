"""The terminal's modes during a chat: what is typed while nothing reads it waits for the prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keep what is typed off the screen and unchanged for the next prompt, for a whole session.

    Without it the terminal shows keys amid the answer, turns Enter into Ctrl+J (which is a new line
    in the prompt), and at Ctrl+C discards what is printed and not yet drawn.
    """
    with _keyboard(ordinary=False):
        yield


@contextmanager
def ordinary_keyboard() -> Iterator[None]:
    """Inside `quiet_keyboard`, make the terminal as other programs expect it, such as an editor."""
    with _keyboard(ordinary=True):
        yield


@contextmanager
def _keyboard(*, ordinary: bool) -> Iterator[None]:
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    modes = list(before)
    editing = termios.ECHO | termios.ICANON | termios.IEXTEN
    if ordinary:
        modes[0], modes[3] = modes[0] | termios.ICRNL, (modes[3] | editing) & ~termios.NOFLSH
    else:
        modes[0], modes[3] = modes[0] & ~termios.ICRNL, modes[3] & ~editing | termios.NOFLSH
    termios.tcsetattr(keyboard, termios.TCSANOW, modes)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
