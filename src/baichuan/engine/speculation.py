"""Guesses at the next tokens, which one pass of the network checks.

Reading a large network's weights takes as long for a few tokens as for one, so tokens that can be
guessed are nearly free (speculative decoding: Leviathan et al. 2023, arXiv 2211.17192). The first
guess is what followed the last time that the newest tokens stood in prompt or answer (LLMA: Yang et
al. 2023, arXiv 2304.04487; "prompt lookup"): right where an answer copies, edits or quotes. Where
they stood nowhere, a small network may guess (draft.py). The loop chooses every token as it would
without guesses and drops a guess at the first that differs, so that the answer, sampled or not, is
the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from baichuan.engine.cache import DecoderModel
from baichuan.engine.draft import Draft, Drafted
from baichuan.engine.sampling import Sampler
from baichuan.errors import UsageError

_log = logging.getLogger(__name__)

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


@dataclass(eq=False)
class Guesser:
    """One sequence and what is guessed of it.

    Attributes:
        lookup, drafted: the sources; the second only where there is a draft.
        guess: tokens that the pass under way checks, and whether they are the draft's.
    """

    lookup: PromptLookup
    drafted: Drafted | None
    guess: list[int] = field(default_factory=list)
    by_draft: bool = False

    def extend(self, tokens: Sequence[int]) -> None:
        """Take note of tokens that now belong to the text."""
        self.lookup.extend(tokens)
        if self.drafted is not None:
            self.drafted.tokens.extend(tokens)


class Speculation:
    """The guesses of an engine; the arguments are the engine's.

    Raises:
        UsageError: the draft has another vocabulary, or `speculate` forbids it.
    """

    def __init__(
        self,
        model: DecoderModel,
        prefill_chunk: int,
        speculate: bool | None,
        draft: DecoderModel | None,
    ) -> None:
        self._model = model
        self._speculate = speculate
        self._draft = None
        if draft is not None:
            _refuse_draft(model, draft, speculate)
            self._draft = Draft(draft, prefill_chunk)

    def begin(self, prompt: Sequence[int], sampler: Sampler) -> Guesser | None:
        """Take a sequence; None where nothing is to be guessed."""
        allowed = self._speculate
        if allowed is None:
            allowed = self._draft is not None or self._model.exact_rows
        if not allowed:
            return None
        drafted = None if self._draft is None else self._draft.begin(prompt, sampler)
        return Guesser(PromptLookup(prompt), drafted)

    def end(self, guesser: Guesser | None) -> None:
        """Let a sequence go."""
        if self._draft is not None and guesser is not None and guesser.drafted is not None:
            self._draft.end(guesser.drafted)

    def guess(self, asked: Mapping[Guesser, int]) -> None:
        """Put up to so many tokens into each `guess`; none where nothing suggests any."""
        for guesser, most in asked.items():
            guesser.guess, guesser.by_draft = guesser.lookup.guess(most), False
        if self._draft is None:
            return
        silent = {g.drafted: g for g in asked if g.drafted is not None and not g.guess}
        self._guess_by_draft(silent, {drafted: asked[g] for drafted, g in silent.items()})

    def _guess_by_draft(
        self, silent: Mapping[Drafted, Guesser], asked: Mapping[Drafted, int]
    ) -> None:
        """Ask the draft; if it fails, for each text alone, and no more for one where it fails."""
        assert self._draft is not None
        try:
            guesses = self._draft.guess(asked)
        except Exception:
            if len(asked) > 1:
                for drafted, most in asked.items():
                    self._guess_by_draft(silent, {drafted: most})
                return
            _log.warning("the draft model failed; an answer goes on without it", exc_info=True)
            for drafted in asked:
                silent[drafted].drafted = None
                self._draft.end(drafted)
            return
        for drafted, guess in guesses.items():
            silent[drafted].guess, silent[drafted].by_draft = guess, True

    def learn(self, guesser: Guesser | None, right: int) -> None:
        """Hear how many tokens of the guess were right."""
        if guesser is None or not guesser.guess:
            return
        if not guesser.by_draft:
            guesser.lookup.learn(len(guesser.guess), right)
        elif self._draft is not None and guesser.drafted is not None:
            self._draft.learn(guesser.drafted, len(guesser.guess), right)

    def took(self, seconds: float, guessed: int) -> None:
        """Hear how long a step took without its guessing, and how many tokens it checked."""
        if self._draft is not None:
            self._draft.times.large(seconds, guessed)


def _refuse_draft(model: DecoderModel, draft: DecoderModel, speculate: bool | None) -> None:
    if speculate is False:
        raise UsageError("A draft model was given, but speculation is off; leave one of them out.")
    if draft.vocabulary != model.vocabulary:
        raise UsageError(
            "The draft model knows {draft} tokens, the model {model}; a draft needs the same "
            "vocabulary.",
            draft=draft.vocabulary,
            model=model.vocabulary,
        )
