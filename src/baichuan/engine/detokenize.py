"""From tokens to text as they arrive. Knows a `decode` function; no vocabulary, no model.

Text is given out only when it can no longer change: a character whose bytes have not all arrived is
held back, and so is the beginning of what may become a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

#: What decoders put in place of bytes that make no character (yet).
_REPLACEMENT = "\ufffd"
#: A character has four bytes at most, so one that is unfinished shows as three of these at most.
_MOST_UNFINISHED = 3


class IncrementalDetokenizer:
    """Turns the tokens of one answer into pieces of text that join to the whole answer.

    The answer's text is what `decode(context + answer)` adds to `decode(context)`. Only what
    follows the last but one complete piece is decoded again at each step, so the cost per token is
    constant. A U+FFFD that is really in the text waits for the character behind it.

    Args:
        decode: tokens to text. More tokens may only add text, or finish a character that showed as
            U+FFFD until then; the first token may lose a leading space.
        context: tokens before the answer; without any, the answer's first token is the first.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        # The window that is decoded at each step: a complete piece, whose only use is that the
        # next one is not the first and keeps its space, and from `_fresh` on what came after it.
        self._window = list(context)
        self._fresh = len(self._window)
        self._shown = decode(self._window) if context else ""  # text of the window, not to come

    def push(self, token: int) -> str:
        """Take one more token and return the text that is now certain (perhaps none)."""
        self._window.append(token)
        text = self._decode(self._window)
        unfinished = min(len(text) - len(text.rstrip(_REPLACEMENT)), _MOST_UNFINISHED)
        piece = self._show(text, len(text) - unfinished)
        if piece and not unfinished:
            self._advance(text)
        return piece

    def finish(self) -> str:
        """Return what was held back: the answer is over, an unfinished character stays broken."""
        text = self._decode(self._window)
        return self._show(text, len(text))

    def _show(self, text: str, certain: int) -> str:
        """Return the part of `text[:certain]` that is new."""
        # The answer may finish a character that the context left unfinished.
        finished = len(self._shown.rstrip(_REPLACEMENT))
        broken = len(text) - finished - len(text[finished:].lstrip(_REPLACEMENT))
        piece = text[min(len(self._shown), finished + broken) : certain]
        if piece:
            self._shown = text[:certain]
        return piece

    def _advance(self, text: str) -> None:
        """Let the window begin at the newest complete piece."""
        newest = self._window[self._fresh :]
        shown = self._decode(newest)
        # A lone space, or a token without text, would leave its successor the first again.
        if shown and text.endswith(shown):
            self._window, self._shown = newest, shown
        self._fresh = len(self._window)


class StopStrings:
    """Ends a text at the stop string that is complete first, however the text is cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece; give what is certainly before any stop string, and whether one was met."""
        text = self._held + text
        met = [
            (text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text
        ]
        if met:
            self._held = ""
            return text[: min(met)[1]], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """Give what was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
