"""Guesses at the next tokens by a small network of the same vocabulary; the large one checks them.

The second source of guesses, where the text itself suggests none (speculation.py has the first, and
says why guesses change no answer). The draft says what it holds for likeliest after the sampler's
penalties: the large network's choice stands whatever was guessed, so no other guess is right more
often. How many tokens are guessed depends on how many were right and on what a pass of the draft
takes, so that a draft which is often wrong, or slow, is hardly asked.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from baichuan.engine.cache import Chunk, DecoderModel, SequenceCache
from baichuan.engine.prefix import PrefixCache
from baichuan.engine.sampling import Sampler

#: What a further row adds to a pass of the large network, as a share of a pass of one row.
_ROW = 0.08
#: Tokens judged that count; the older ones' weight fades.
_REMEMBERED = 32
#: Right ones among so many that a draft is credited with before it has guessed.
_CREDIT = (2.0, 3.0)
#: Share of the time that may go into finding out whether a draft that does not pay does so now.
_PROBING = 0.01
#: Pass times that are remembered, and how many must be known before they count.
_TIMES, _FEWEST_TIMES = 15, 3
#: What a pass of the draft costs until times are known, in passes of the large network.
_UNKNOWN_COST = 0.1


class Acceptance:
    """The share of guessed tokens that prove right: of one text, or of all.

    Args:
        credit: right ones, and all, to begin with.
    """

    def __init__(self, credit: tuple[float, float] = _CREDIT) -> None:
        self._right, self._judged = credit

    @property
    def rate(self) -> float:
        """From 0 to 1, both excluded."""
        return self._right / self._judged

    def learn(self, guessed: int, right: int) -> None:
        """Take note of a guess: the tokens behind the first wrong one were not judged."""
        self._right += right
        self._judged += min(guessed, right + 1)
        fade = min(1.0, _REMEMBERED / self._judged)
        self._right, self._judged = self._right * fade, self._judged * fade


class PassTimes:
    """What a pass of the draft costs, in passes of the large network without guesses."""

    def __init__(self) -> None:
        self._draft: deque[float] = deque(maxlen=_TIMES)
        self._large: deque[float] = deque(maxlen=_TIMES)

    def draft(self, seconds: float) -> None:
        """Take note of a pass of the draft over a token or two of each text."""
        self._draft.append(seconds)

    def large(self, seconds: float, guessed: int) -> None:
        """Take note of a step of the engine without its guessing, which checked so many tokens."""
        self._large.append(seconds / (1 + _ROW * guessed))

    @property
    def cost(self) -> float:
        """The ratio of the medians, which a pause of the machine does not move."""
        if min(len(self._draft), len(self._large)) < _FEWEST_TIMES:
            return _UNKNOWN_COST
        return median(self._draft) / median(self._large)


def pays(rate: float, cost: float) -> bool:
    """Say whether a guess yields more than it takes; the arguments are those of `best_size`."""
    return rate > cost + _ROW


def best_size(rate: float, cost: float, most: int) -> int:
    """Give the number of guessed tokens that yields most per time, 0 if guessing does not pay.

    Args:
        rate: at which guessed tokens are right, below 1.
        cost: of a pass of the draft, in passes of the large network.
        most: allowed.
    """

    def gain(size: int) -> float:
        """Tokens that a pass with so many guesses gives, per time of one without any."""
        tokens = (1 - rate ** (size + 1)) / (1 - rate)
        return tokens / (1 + size * (cost + _ROW))

    return max(range(most + 1), key=gain)


@dataclass(eq=False)
class Drafted:
    """One sequence as the draft sees it.

    Attributes:
        tokens: prompt and answer so far; its owner extends it.
        sampler: the sequence's own, whose penalties the guesses heed.
        acceptance: of guesses at this text.
        cache: the draft's own; it may hold less than the text, and guesses behind the text.
        pause: passes to come without a guess.
    """

    tokens: list[int]
    sampler: Sampler
    acceptance: Acceptance
    cache: SequenceCache
    pause: int = 0


class Draft:
    """A small network's guesses for all sequences of an engine, and its caches.

    Beginnings of finished sequences are kept for those to come, in as many blocks as sequences that
    ran at once have held: what bounds the large network's caches bounds these, too.

    Args:
        model: of the large network's vocabulary.
        prefill_chunk: most tokens of one pass; a longer text is read over several steps of the
            engine before anything is guessed.

    Attributes:
        times: of passes; the engine reports the large network's.
    """

    def __init__(self, model: DecoderModel, prefill_chunk: int) -> None:
        self.times = PassTimes()
        self._model = model
        self._prefill_chunk = prefill_chunk
        self._pool = model.new_pool()
        self._prefixes = PrefixCache(self._pool)
        self._most_held = 0
        self._acceptance = Acceptance()

    def begin(self, prompt: Iterable[int], sampler: Sampler) -> Drafted:
        """Take a sequence; nothing is computed before a guess is asked for."""
        credit = _CREDIT[1] * self._acceptance.rate, _CREDIT[1]
        return Drafted(list(prompt), sampler, Acceptance(credit), SequenceCache(self._pool))

    def end(self, text: Drafted) -> None:
        """Let a sequence go; its beginning is kept while there is room."""
        text.cache.reuse(text.tokens)
        self._prefixes.keep(text.cache)
        text.cache.truncate(0)
        self._make_room()

    def guess(self, asked: Mapping[Drafted, int]) -> dict[Drafted, list[int]]:
        """Guess what follows each text, up to so many tokens; the texts share the draft's passes.

        Returns:
            The guesses; no entry for a text where that does not pay just now, or which the draft
            has not read to its end yet.
        """
        began, passes = time.perf_counter(), 1
        sizes = {text: size for text, most in asked.items() if (size := self._size(text, most))}
        chunks = self._unread(sizes)
        known = all(len(chunk.tokens) <= 2 for chunk in chunks.values())
        guesses: dict[Drafted, list[int]] = {}
        rows = self._run(chunks)
        while rows:
            for text, row in rows.items():
                guesses.setdefault(text, []).append(text.sampler.likeliest(row))
            going_on = [text for text in rows if len(guesses[text]) < sizes[text]]
            rows = self._run({text: Chunk(guesses[text][-1:], text.cache) for text in going_on})
            passes += bool(rows)
        if chunks and known:
            self.times.draft((time.perf_counter() - began) / passes)
        self._make_room()
        return guesses

    def learn(self, text: Drafted, guessed: int, right: int) -> None:
        """Hear how many tokens of a guess were right."""
        text.acceptance.learn(guessed, right)
        self._acceptance.learn(guessed, right)
        cost = self.times.cost
        if not pays(text.acceptance.rate, cost) and not pays(right / guessed, cost):
            # A single token is guessed then, behind a text that the draft must first catch up with.
            text.pause = round((2 * cost + _ROW) / _PROBING)

    def _size(self, text: Drafted, most: int) -> int:
        """Choose how many tokens to guess: one after a pause, to see whether it pays again."""
        if text.pause:
            text.pause -= 1
            return 0
        return max(best_size(text.acceptance.rate, self.times.cost, most), min(most, 1))

    def _unread(self, texts: Iterable[Drafted]) -> dict[Drafted, Chunk]:
        """Give what the draft's caches lack of the texts, as much as one pass may take."""
        room, chunks = self._prefill_chunk, {}
        for text in texts:
            if not len(text.cache):
                text.cache = self._prefixes.cache_for(text.tokens)
            text.cache.reuse(text.tokens)  # forgets guesses that proved wrong
            lacking = text.tokens[len(text.cache) :]
            part = lacking[:room]
            room -= len(part)
            if part:
                chunks[text] = Chunk(part, text.cache, logits=int(len(part) == len(lacking)))
        return chunks

    def _run(self, chunks: Mapping[Drafted, Chunk]) -> dict[Drafted, Tensor]:
        """Run a pass; give the logits [vocabulary] behind each text where they are wanted."""
        if not chunks:
            return {}
        logits = self._model.forward_chunks(list(chunks.values()))
        return {text: rows[0] for text, rows in zip(chunks, logits, strict=True) if len(rows)}

    def _make_room(self) -> None:
        self._most_held = max(self._most_held, self._pool.used - self._prefixes.spare)
        self._prefixes.evict(max(0, self._pool.used - self._most_held))
