"""Guesses at the next tokens from what the text already says; one pass of the network checks them.

Reading a large network's weights takes as long for a few tokens as for one, so tokens that can be
guessed are nearly free (speculative decoding: Leviathan et al. 2023, arXiv 2211.17192). The guess
here is what followed the last time that the newest tokens stood in prompt or answer (LLMA: Yang et
al. 2023, arXiv 2304.04487; "prompt lookup"): right where an answer copies, edits or quotes. The
loop chooses every token as it would without guesses and drops a guess at the first that differs, so
that the answer, sampled or not, is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle, islice

#: How many newest tokens are looked up, the longest first: fewer are found often and mean little.
_LENGTHS = (8, 3)
#: Longest guess; with the newest token it makes a pass of 16.
MOST = 15
_FIRST = 4
#: Passes without a guess after so many wrong ones in a row (the last: after any more).
_PAUSES = (0, 4, 16, 64)


class PromptLookup:
    """Guesses for one sequence; wrong ones make it hesitate, right ones bolder."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._found: dict[tuple[int, ...], int] = {}
        self._most = _FIRST
        self._misses = 0
        self._pause = 0
        self.extend(prompt)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that now belong to the text."""
        for token in tokens:
            for length in _LENGTHS:  # those before this token: it is what followed them
                if len(self._tokens) >= length:
                    self._found[tuple(self._tokens[-length:])] = len(self._tokens)
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Give up to `most` tokens that may come next; none where nothing suggests any."""
        if self._pause:
            self._pause -= 1
            return []
        for length in _LENGTHS:
            place = self._found.get(tuple(self._tokens[-length:]))
            if place is not None:
                since = self._tokens[place:]  # repeated, should it be shorter than the guess
                return list(islice(cycle(since), max(0, min(most, self._most))))
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many tokens of a guess were right."""
        if not guessed:
            return
        self._misses = 0 if right else min(self._misses + 1, len(_PAUSES) - 1)
        self._pause = _PAUSES[self._misses]
        self._most = min(2 * self._most, MOST) if right == guessed else max(right, _FIRST)
