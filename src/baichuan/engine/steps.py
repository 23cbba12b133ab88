"""What the decode loop gives: a token of a request, what it has cost, what the caches hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baichuan.engine.sampling import TokenLogprobs

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Usage:
    """What a request has cost so far.

    Attributes:
        prompt_tokens: tokens of the prompt, of which `cached_tokens` were in the cache already.
        completion_tokens: tokens generated.
        prefill_seconds: from the start of the first pass to the first token.
        decode_seconds: from the first token to the latest one.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens computed per second (cached ones do not count)."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_speed(self) -> float:
        """Tokens per second after the first."""
        return max(self.completion_tokens - 1, 0) / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class Step:
    """One token of one request.

    Attributes:
        request: number that `Engine.add` gave.
        token: the token's id.
        text: text that became certain with this token; the texts of all steps join to the answer.
        finish_reason: None while the answer goes on; `"eos"`, `"stop"` (a stop string) or
            `"length"` (max_tokens) on the last step.
        usage: counts and times so far.
        logprobs: if asked for.
    """

    request: int
    token: int
    text: str
    finish_reason: FinishReason | None
    usage: Usage
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class CacheUse:
    """Positions of the engine's own caches, in whole blocks.

    Attributes:
        limit: most at a time, or None.
        held: of running requests.
        kept: of earlier requests, for reuse; given up when others need the room.
        waiting: requests that wait for room.
    """

    limit: int | None
    held: int
    kept: int
    waiting: int
