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
#: Sizes of a guess, which right ones climb and wrong ones descend. With the newest token they make
#: passes of 2, 4, 8 and 16 rows, which the kernels take at 1.1, 1.25, 1.5 and 2.4 times one row.
_SIZES = (1, 3, 7, 15)
MOST = _SIZES[-1]
#: Passes without a guess after so many in a row that were wrong throughout (the last: any more).
_PAUSES = (0, 0, 4, 16, 64)
#: Tokens in a row that may differ from what is being copied before it is given up.
_EDITED = 2


class PromptLookup:
    """Guesses for one sequence; wrong ones make it hesitate, right ones bolder."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._found: dict[tuple[int, ...], int] = {}
        self._source: int | None = None  # place of what is guessed next, while text is copied
        self._edited = 0
        self._size = 1
        self._misses = 0
        self._pause = 0
        self.extend(prompt)

    def extend(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that now belong to the text."""
        for token in tokens:
            for length in _LENGTHS:  # those before this token: it is what followed them
                if len(self._tokens) >= length:
                    self._found[tuple(self._tokens[-length:])] = len(self._tokens)
            self._follow(token)
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Give up to `most` tokens that may come next; none where nothing suggests any."""
        if self._pause:
            self._pause -= 1
            return []
        found = (self._found.get(tuple(self._tokens[-length:])) for length in _LENGTHS)
        self._source = next((place for place in found if place is not None), self._source)
        if self._source is None:
            return []
        since = self._tokens[self._source :]  # repeated, should it be shorter than the guess
        return list(islice(cycle(since), max(0, min(most, _SIZES[self._size]))))

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many tokens of a guess were right."""
        if not guessed:
            return
        self._misses = 0 if right else min(self._misses + 1, len(_PAUSES) - 1)
        self._pause = _PAUSES[self._misses]
        if right == guessed:
            self._size = min(self._size + 1, len(_SIZES) - 1)
        elif right < guessed / 2:
            self._size = max(self._size - 1, 0)

    def _follow(self, token: int) -> None:
        """Go on in what is being copied; a token that differs may stand in place of another."""
        if self._source is None:
            return
        self._edited = 0 if self._tokens[self._source] == token else self._edited + 1
        self._source += 1
        if self._edited > _EDITED or self._source >= len(self._tokens):
            self._source, self._edited = None, 0
