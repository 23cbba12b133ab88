"""The decode loop: requests in, `Step`s out. The only one in the house.

Knows a `DecoderModel` and a `decode` function; no network, no chat format, no server. Each `step`
is one forward pass over everything that is running: one token of each sequence that decodes and a
bounded number of prompt tokens of those that do not yet, so memory stays bounded and a long prompt
does not stop the others. Chat, completion, evaluation and benchmark are folds over its steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from baichuan.engine.cache import Chunk, DecoderModel, SequenceCache, blocks_for
from baichuan.engine.detokenize import Decode, IncrementalDetokenizer, StopStrings
from baichuan.engine.prefix import PrefixCache
from baichuan.engine.sampling import Sampler, SamplingParams
from baichuan.engine.speculation import MOST, Guesser, Speculation
from baichuan.engine.steps import CacheUse, FinishReason, Step, Usage
from baichuan.errors import UsageError
from baichuan.kernels.paged import BLOCK

#: Prompt tokens per forward pass; bounds the memory of activations.
PREFILL_CHUNK = 512


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

    @property
    def guess(self) -> list[int]:
        """Tokens guessed behind the newest, for the pass that is under way."""
        return [] if self.guesser is None else self.guesser.guess

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
    """Runs requests side by side, each with its own cache, parameters and random numbers.

    Attributes:
        failed: errors of the latest step by the numbers of the requests that they ended.
    """

    def __init__(
        self,
        model: DecoderModel,
        decode: Decode,
        *,
        prefill_chunk: int = PREFILL_CHUNK,
        cache_tokens: int | None = None,
        speculate: bool | None = None,
        draft: DecoderModel | None = None,
        turn_ids: Collection[int] = (),
        banned_ids: Sequence[int] = (),
    ) -> None:
        """Take a model to run.

        Args:
            model: computes logits.
            decode: token ids to text.
            prefill_chunk: most prompt tokens of one pass, over all requests.
            cache_tokens: most positions that caches may hold together. Requests wait until there
                is room for their prompt and the longest answer that they allow; what is left is
                used to keep beginnings of earlier requests. None: no bound, nothing is kept.
            speculate: whether to guess tokens that the text suggests and check several in a pass.
                None: where that changes nothing but the speed, which is where the model has
                `exact_rows`, and where a draft is given; elsewhere rounding may decide differently
                between two equally likely tokens, as in any batch.
            draft: a small model of the same vocabulary, which guesses where the text suggests
                nothing.
            turn_ids: tokens behind which a new text begins (role markers). An answer behind any
                other token continues the prompt's text: its first token keeps its leading space.
            banned_ids: tokens that are never chosen, such as those that `decode` cannot decode.

        Raises:
            UsageError: one of the numbers is below 1, or the draft has another vocabulary or may
                not guess.
        """
        for name, given in (("prefill_chunk", prefill_chunk), ("cache_tokens", cache_tokens)):
            if given is not None and given < 1:
                raise UsageError("{name} is {given}; allowed is 1 or more.", name=name, given=given)
        self._model = model
        self._decode = decode
        self._turn_ids = frozenset(turn_ids)
        self._banned_ids = torch.tensor(banned_ids, dtype=torch.long)
        self._prefill_chunk = prefill_chunk
        self._pool = model.new_pool(None if cache_tokens is None else blocks_for(cache_tokens))
        self._prefixes = None if cache_tokens is None else PrefixCache(self._pool)
        self._speculation = Speculation(model, prefill_chunk, speculate, draft)
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self.failed: dict[int, Exception] = {}
        self._next_number = 0

    @property
    def running(self) -> int:
        """Number of requests that have not finished, those that wait for room included."""
        return len(self._running) + len(self._waiting)

    @property
    def cache_use(self) -> CacheUse:
        """What the caches of requests without one of their own hold just now."""
        kept = 0 if self._prefixes is None else self._prefixes.spare
        limit = None if self._pool.limit is None else self._pool.limit * BLOCK
        return CacheUse(limit, (self._pool.used - kept) * BLOCK, kept * BLOCK, len(self._waiting))

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
            UsageError: the prompt is empty, the cache is in use, or prompt and answer would never
                fit into `cache_tokens`.
        """
        if not prompt:
            raise UsageError("The prompt has no tokens; give at least one.")
        if any(cache is sequence.cache for sequence in self._running.values()):
            raise UsageError("The cache is in use by a running request; give each its own.")
        number, self._next_number = self._next_number, self._next_number + 1
        sampler = Sampler(params, prompt)
        sequence = _Sequence(
            number=number,
            prompt=list(prompt),
            params=params,
            cache=SequenceCache(self._pool) if cache is None else cache,
            own_cache=cache is None,
            cached=0 if cache is None else cache.reuse(prompt),
            sampler=sampler,
            detokenizer=IncrementalDetokenizer(self._decode, self._text_before(prompt)),
            stops=StopStrings(params.stop),
            guesser=self._speculation.begin(prompt, sampler),
        )
        if cache is None and self._pool.limit is not None:
            self._refuse_what_never_fits(sequence, self._pool.limit)
            self._waiting.append(sequence)
        else:
            self._running[number] = sequence
        return number

    def cancel(self, request: int) -> None:
        """Forget a request; unknown numbers (finished ones) are ignored."""
        sequence = self._running.pop(request, None)
        if sequence is None:
            self._waiting = deque(w for w in self._waiting if w.number != request)
            return
        self._speculation.end(sequence.guesser)
        if sequence.own_cache:
            if self._prefixes is not None:
                self._prefixes.keep(sequence.cache)
            sequence.cache.truncate(0)

    def step(self) -> list[Step]:
        """Run one forward pass; give a step for each request that has a new token.

        A request whose own part goes wrong (its constraint, its detokenizer) leaves, its error is
        in `failed`, and the others go on.

        Raises:
            Exception: the pass itself went wrong.
        """
        self.failed = {}
        self._admit()
        sequences, chunks = self._plan()
        if not chunks:
            return []
        decoding = all(sequence.answer for sequence in sequences)
        now = time.perf_counter()
        for sequence in sequences:
            if sequence.started is None:
                sequence.started = now
        logits = self._model.forward_chunks(chunks)
        steps: list[Step] = []
        for sequence, rows in zip(sequences, logits, strict=True):
            try:
                steps += self._follow(sequence, rows)
            except Exception as error:
                self.cancel(sequence.number)
                self.failed[sequence.number] = error
        if decoding:
            guessed = sum(len(chunk.tokens) - 1 for chunk in chunks)
            self._speculation.took(time.perf_counter() - now, guessed)
        return steps

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, cache: SequenceCache | None = None
    ) -> Iterator[Step]:
        """Run one request to its end; closing the iterator cancels it."""
        number = self.add(prompt, params, cache)
        try:
            while self._has(number):
                steps = self.step()
                self._raise_failure_of(number)
                yield from (step for step in steps if step.request == number)
        finally:
            self.cancel(number)

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> Iterator[Step]:
        """Run several requests side by side; `Step.request` is the index of the prompt."""
        numbers = {self.add(prompt, params): index for index, prompt in enumerate(prompts)}
        try:
            while any(self._has(number) for number in numbers):
                steps = self.step()
                self._raise_failure_of(*numbers)
                for step in steps:
                    if step.request in numbers:
                        yield replace(step, request=numbers[step.request])
        finally:
            for number in numbers:
                self.cancel(number)

    def _text_before(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the end of a prompt whose text the answer continues."""
        turns = (i for i in range(len(prompt), 0, -1) if prompt[i - 1] in self._turn_ids)
        return prompt[next(turns, 0) :]

    def _raise_failure_of(self, *numbers: int) -> None:
        for number in self.failed.keys() & numbers:
            raise self.failed[number]

    def _has(self, number: int) -> bool:
        return number in self._running or any(w.number == number for w in self._waiting)

    def _refuse_what_never_fits(self, sequence: _Sequence, limit: int) -> None:
        if sequence.most_blocks > limit:
            raise UsageError(
                "The prompt has {prompt} tokens and its answer up to {answer}; the caches have "
                "room for {room} in all. Ask for fewer, or give the caches more room.",
                prompt=len(sequence.prompt),
                answer=sequence.params.max_tokens,
                room=limit * BLOCK,
            )

    def _admit(self) -> None:
        """Let requests in, first come first served, while the most they may need is free."""
        while self._waiting and self._prefixes is not None:
            sequence = self._waiting[0]
            promised = sum(s.most_blocks - len(s.cache.blocks) for s in self._in_pool())
            cache = self._prefixes.cache_for(sequence.prompt)
            wanted = sequence.most_blocks - len(cache.blocks) + promised
            missing = int(max(0, wanted - self._pool.available))
            if missing > self._prefixes.spare:
                cache.truncate(0)
                return
            self._prefixes.evict(missing)
            sequence.cache, sequence.cached = cache, len(cache)
            self._running[sequence.number] = self._waiting.popleft()

    def _in_pool(self) -> Iterator[_Sequence]:
        return (sequence for sequence in self._running.values() if sequence.own_cache)

    def _plan(self) -> tuple[list[_Sequence], list[Chunk]]:
        """Choose the tokens of the next pass: all that decode, and prompts in order of arrival.

        A prompt is cut where it would be cut if it were alone, for rounding depends on the cut: a
        part that does not fit behind those of other prompts waits for the next pass.
        """
        budget = self._prefill_chunk
        sequences, chunks = [], []
        self._guess()
        for sequence in self._running.values():
            pending = sequence.pending
            if not sequence.answer:
                part = pending[: self._prefill_chunk]
                if len(part) > budget:
                    continue
                budget -= len(part)
                chunk = Chunk(part, sequence.cache, logits=int(len(part) == len(pending)))
            else:
                tokens = pending + sequence.guess
                chunk = Chunk(tokens, sequence.cache, logits=len(tokens))
            sequences.append(sequence)
            chunks.append(chunk)
        return sequences, chunks

    def _guess(self) -> None:
        """Guess tokens behind the newest ones; the fewer, the more requests share the pass."""
        share = (MOST + 1) // max(len(self._running), 1) - 1
        asked = {}
        for sequence in self._running.values():
            if sequence.answer and sequence.guesser is not None:
                left = sequence.params.max_tokens - len(sequence.answer) - 1
                asked[sequence.guesser] = max(0, min(share, left))
        self._speculation.guess(asked)

    def _follow(self, sequence: _Sequence, rows: Tensor) -> Iterator[Step]:
        """Choose a token from each row of logits, as long as the pass has guessed the one before.

        Args:
            sequence: with its guess.
            rows: [0, vocabulary] while its prompt is unfinished, else [1 + guessed, vocabulary].
        """
        right = 0
        for row, guessed in zip(rows, [*sequence.guess, None], strict=False):
            step = self._choose(sequence, row)
            right += step.token == guessed
            ended = step.finish_reason is not None
            if ended or step.token != guessed:
                # What stands behind the newest token was guessed in vain.
                sequence.cache.truncate(len(sequence.prompt) + len(sequence.answer) - 1)
            if ended:
                self.cancel(sequence.number)
            yield step
            if ended or step.token != guessed:
                break
        self._speculation.learn(sequence.guesser, right)

    def _choose(self, sequence: _Sequence, logits: Tensor) -> Step:
        """Sample one token, turn it into text and see whether the answer ends with it."""
        if len(self._banned_ids):
            self._banned_ids = self._banned_ids.to(logits.device)
            logits = logits.index_fill(0, self._banned_ids, float("-inf"))
        token, logprobs = sequence.sampler(logits)
        if not sequence.answer and sequence.own_cache and self._prefixes is not None:
            self._prefixes.keep(sequence.cache)  # for those that come while this one is answered
        sequence.answer.append(token)
        if sequence.guesser is not None:
            sequence.guesser.extend([token])
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
        return Step(sequence.number, token, text, reason, sequence.usage(now), logprobs)
