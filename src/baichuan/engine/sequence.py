"""A running request of the engine: its tokens, its cache and what belongs to it alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from baichuan.engine.cache import SequenceCache, blocks_for
from baichuan.engine.detokenize import IncrementalDetokenizer, StopStrings
from baichuan.engine.sampling import Sampler, SamplingParams
from baichuan.engine.speculation import Guesser
from baichuan.engine.steps import Usage


@dataclass
class RunningSequence:
    """A running request."""

    number: int
    prompt: list[int]
    params: SamplingParams
    cache: SequenceCache
    own_cache: bool  # nobody else's, so that its blocks are free when the request has finished
    cached: int
    sampler: Sampler
    detokenizer: IncrementalDetokenizer
    stops: StopStrings
    guesser: Guesser | None
    answer: list[int] = field(default_factory=list)
    started: float | None = None
    first_token: float = 0.0

    @property
    def most_blocks(self) -> int:
        """Blocks of the cache when the answer is as long as allowed; its last token is not held."""
        return blocks_for(len(self.prompt) + self.params.max_tokens - 1)

    @property
    def pending(self) -> list[int]:
        """Tokens not yet in the cache: the rest of the prompt, or the newest token."""
        held = len(self.cache)
        if held < len(self.prompt):
            return self.prompt[held:]
        return self.answer[held - len(self.prompt) :]

    def forget_newest(self) -> None:
        """Let the cache hold nothing from the newest token on, which is computed next."""
        self.cache.truncate(len(self.prompt) + len(self.answer) - 1)

    @property
    def guess(self) -> list[int]:
        """Tokens guessed behind the newest, for the pass that is under way."""
        return [] if self.guesser is None else self.guesser.guess

    def usage(self, now: float) -> Usage:
        """Return what the request has cost up to a time of `perf_counter`."""
        assert self.started is not None, "usage is asked for after the first pass"
        return Usage(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            completion_tokens=len(self.answer),
            prefill_seconds=self.first_token - self.started,
            decode_seconds=now - self.first_token,
        )
