"""The decode loop: requests in, `Step`s out. The only one in the house.

Knows a `DecoderModel` and a `decode` function; no network, no chat format, no server. Each `step`
is one forward pass over everything that is running: one token of each sequence that decodes and a
bounded number of prompt tokens of those that do not yet, so memory stays bounded and a long prompt
does not stop the others. Chat, completion, evaluation and benchmark are folds over its steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from baichuan.engine.cache import Chunk, DecoderModel, SequenceCache
from baichuan.engine.detokenize import Decode, IncrementalDetokenizer, StopStrings
from baichuan.engine.sampling import Sampler, SamplingParams, TokenLogprobs
from baichuan.errors import UsageError

FinishReason = Literal["eos", "stop", "length"]

#: Prompt tokens per forward pass; bounds the memory of activations.
PREFILL_CHUNK = 512


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


@dataclass
class _Sequence:
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
    answer: list[int] = field(default_factory=list)
    started: float | None = None
    first_token: float = 0.0

    @property
    def pending(self) -> list[int]:
        """Tokens not yet in the cache: the rest of the prompt, or the newest token."""
        held = len(self.cache)
        if held < len(self.prompt):
            return self.prompt[held:]
        return self.answer[held - len(self.prompt) :]

    def usage(self, now: float) -> Usage:
        assert self.started is not None, "usage is asked for after the first pass"
        return Usage(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            completion_tokens=len(self.answer),
            prefill_seconds=self.first_token - self.started,
            decode_seconds=now - self.first_token,
        )


class Engine:
    """Runs requests side by side, each with its own cache, parameters and random numbers."""

    def __init__(
        self, model: DecoderModel, decode: Decode, *, prefill_chunk: int = PREFILL_CHUNK
    ) -> None:
        if prefill_chunk < 1:
            raise UsageError(
                "{name} is {given}; allowed is 1 or more.",
                name="prefill_chunk",
                given=prefill_chunk,
            )
        self._model = model
        self._decode = decode
        self._prefill_chunk = prefill_chunk
        self._pool = model.new_pool()
        self._running: dict[int, _Sequence] = {}
        self._next_number = 0

    @property
    def running(self) -> int:
        """Number of requests that have not finished."""
        return len(self._running)

    def add(
        self, prompt: Sequence[int], params: SamplingParams, cache: SequenceCache | None = None
    ) -> int:
        """Take a request; it joins at the next step.

        Args:
            prompt: token ids, at least one.
            params: how to choose tokens and when to stop.
            cache: what an earlier request left; the longest prefix shared with `prompt` is reused.
                It is this request's until it finishes and holds the conversation afterwards.

        Returns:
            The number that its steps carry.

        Raises:
            UsageError: the prompt is empty, or the cache is in use.
        """
        if not prompt:
            raise UsageError("The prompt has no tokens; give at least one.")
        if any(cache is sequence.cache for sequence in self._running.values()):
            raise UsageError("The cache is in use by a running request; give each its own.")
        own = cache is None
        cache = SequenceCache(self._pool) if cache is None else cache
        number, self._next_number = self._next_number, self._next_number + 1
        self._running[number] = _Sequence(
            number=number,
            prompt=list(prompt),
            params=params,
            cache=cache,
            own_cache=own,
            cached=cache.reuse(prompt),
            sampler=Sampler(params, prompt),
            detokenizer=IncrementalDetokenizer(self._decode),
            stops=StopStrings(params.stop),
        )
        return number

    def cancel(self, request: int) -> None:
        """Forget a request; unknown numbers (finished ones) are ignored."""
        sequence = self._running.pop(request, None)
        if sequence is not None and sequence.own_cache:
            sequence.cache.truncate(0)

    def step(self) -> list[Step]:
        """Run one forward pass; give a step for each request that has a new token."""
        sequences, chunks = self._plan()
        if not chunks:
            return []
        now = time.perf_counter()
        for sequence in sequences:
            if sequence.started is None:
                sequence.started = now
        logits = self._model.forward_chunks(chunks)
        return [
            self._choose(sequence, rows[-1])
            for sequence, rows in zip(sequences, logits, strict=True)
            if len(rows)
        ]

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, cache: SequenceCache | None = None
    ) -> Iterator[Step]:
        """Run one request to its end; closing the iterator cancels it."""
        number = self.add(prompt, params, cache)
        try:
            while number in self._running:
                yield from (step for step in self.step() if step.request == number)
        finally:
            self.cancel(number)

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> Iterator[Step]:
        """Run several requests side by side; `Step.request` is the index of the prompt."""
        numbers = {self.add(prompt, params): index for index, prompt in enumerate(prompts)}
        try:
            while numbers.keys() & self._running.keys():
                for step in self.step():
                    if step.request in numbers:
                        yield replace(step, request=numbers[step.request])
        finally:
            for number in numbers:
                self.cancel(number)

    def _plan(self) -> tuple[list[_Sequence], list[Chunk]]:
        """Choose the tokens of the next pass: all that decode, then prompts in order of arrival."""
        budget = self._prefill_chunk
        sequences, chunks = [], []
        for sequence in self._running.values():
            pending = sequence.pending
            if not sequence.answer:
                if budget == 0:
                    continue
                part = pending[:budget]
                budget -= len(part)
                chunk = Chunk(part, sequence.cache, logits=int(len(part) == len(pending)))
            else:
                chunk = Chunk(pending, sequence.cache)
            sequences.append(sequence)
            chunks.append(chunk)
        return sequences, chunks

    def _choose(self, sequence: _Sequence, logits: Tensor) -> Step:
        """Sample one token, turn it into text and see whether the answer ends with it."""
        token, logprobs = sequence.sampler(logits)
        sequence.answer.append(token)
        now = time.perf_counter()
        if len(sequence.answer) == 1:
            sequence.first_token = now
        reason: FinishReason | None = None
        text = ""
        if token in sequence.params.eos_token_ids:
            reason = "eos"
        else:
            text, met = sequence.stops.push(sequence.detokenizer.push(token))
            if met:
                reason = "stop"
            elif len(sequence.answer) >= sequence.params.max_tokens:
                reason = "length"
        if reason in ("eos", "length"):
            more, met = sequence.stops.push(sequence.detokenizer.finish())
            text += more if met else more + sequence.stops.finish()
            reason = "stop" if met else reason
        if reason is not None:
            self.cancel(sequence.number)
        return Step(sequence.number, token, text, reason, sequence.usage(now), logprobs)
