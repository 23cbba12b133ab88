"""From tokens to text as they arrive. Knows a `decode` function; no vocabulary, no model.

Text is given out only when it can no longer change: a character whose bytes have not all arrived is
held back, and so is the beginning of what may become a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

#: What decoders put in place of bytes that make no character (yet).
_REPLACEMENT = "\ufffd"
#: A character is at most four bytes, hence four byte tokens.
_LONGEST_CHARACTER = 4


class IncrementalDetokenizer:
    """Turns the tokens of one answer into pieces of text that join to `decode(all tokens)`.

    Only the last few tokens are decoded again at each step, so the cost per token is constant.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        # Tokens before `_given` are in the text already given out. Decoding starts at `_context`,
        # a little earlier, because a token's text depends on its left neighbour (the first token
        # of a text loses its space).
        self._context = 0
        self._given = 0

    def push(self, token: int) -> str:
        """Take one more token and give the text that is now certain (perhaps none)."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._context : self._given])
        text = self._decode(self._tokens[self._context :])
        if text.endswith(_REPLACEMENT) and len(self._tokens) - self._given < _LONGEST_CHARACTER:
            return ""
        return self._advance(known, text)

    def finish(self) -> str:
        """Give what was held back: the answer is over, so an unfinished character stays broken."""
        known = self._decode(self._tokens[self._context : self._given])
        return self._advance(known, self._decode(self._tokens[self._context :]))

    def _advance(self, known: str, text: str) -> str:
        if self._given < len(self._tokens):
            self._context, self._given = self._given, len(self._tokens)
        return text[len(known) :]


class StopStrings:
    """Ends a text at the first of several strings, however the text is cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece; give what is certainly before any stop string, and whether one was met."""
        text = self._held + text
        met = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if met:
            self._held = ""
            return text[: min(met)], True
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
