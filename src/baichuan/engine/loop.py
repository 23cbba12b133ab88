"""The decode loop: requests in, `Step`s out. The only one in the house.

Knows a `DecoderModel` and a `decode` function; no network, no chat format, no server. Each `step`
is one forward pass over everything that is running: one token of each sequence that decodes and a
bounded number of prompt tokens of those that do not yet, so memory stays bounded and a long prompt
does not stop the others. Chat, completion, evaluation and benchmark are folds over its steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from baichuan.engine.cache import Chunk, DecoderModel, SequenceCache, blocks_for
from baichuan.engine.detokenize import Decode, IncrementalDetokenizer, StopStrings
from baichuan.engine.exiting import computing
from baichuan.engine.faults import as_fault_of_request, check_banned_ids, check_prompt
from baichuan.engine.prefix import PrefixCache
from baichuan.engine.sampling import Sampler, SamplingParams
from baichuan.engine.sequence import RunningSequence
from baichuan.engine.speculation import MOST, Speculation
from baichuan.engine.steps import CacheUse, FinishReason, Step
from baichuan.errors import UsageError
from baichuan.kernels.paged import BLOCK

#: Prompt tokens per forward pass; bounds the memory of activations.
PREFILL_CHUNK = 512


class Engine:
    """Runs requests side by side, each with its own cache, parameters and random numbers.

    Threads may share an engine: one step runs at a time, and a step that one thread runs for
    another is kept for it. What goes wrong with a request ends that request alone.

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
            UsageError: one of the numbers is below 1, banned_ids leave no token or are not of the
                vocabulary, or the draft has another vocabulary or may not guess.
        """
        for name, given in (("prefill_chunk", prefill_chunk), ("cache_tokens", cache_tokens)):
            if given is not None and given < 1:
                raise UsageError("{name} is {given}; allowed is 1 or more.", name=name, given=given)
        self._model = model
        self._decode = decode
        self._turn_ids = frozenset(turn_ids)
        self._banned_ids = check_banned_ids(banned_ids, model.vocabulary)
        self._prefill_chunk = prefill_chunk
        self._pool = model.new_pool(None if cache_tokens is None else blocks_for(cache_tokens))
        self._prefixes = None if cache_tokens is None else PrefixCache(self._pool)
        self._speculation = Speculation(model, prefill_chunk, speculate, draft)
        self._waiting: deque[RunningSequence] = deque()
        self._running: dict[int, RunningSequence] = {}
        self.failed: dict[int, Exception] = {}
        self._next_number = 0
        self._lock = threading.RLock()
        self._arrived: dict[int, deque[Step | Exception]] = {}  # for `generate`, by request

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
            UsageError: the prompt is empty or has ids that are not of the vocabulary, the cache is
                in use or another network's, or prompt and answer would never fit into
                `cache_tokens`.
        """
        prompt = self.checked(prompt, params, cache)
        sampler = Sampler(params, prompt)
        detokenizer = IncrementalDetokenizer(self._decode, self._text_before(prompt))
        with self._lock:
            if cache is not None:
                cache.acquire()
            number, self._next_number = self._next_number, self._next_number + 1
            sequence = RunningSequence(
                number=number,
                prompt=prompt,
                params=params,
                cache=SequenceCache(self._pool) if cache is None else cache,
                own_cache=cache is None,
                cached=0 if cache is None else cache.reuse(prompt),
                sampler=sampler,
                detokenizer=detokenizer,
                stops=StopStrings(params.stop),
                guesser=self._speculation.begin(prompt, sampler),
            )
            if cache is None and self._pool.limit is not None:
                self._waiting.append(sequence)
            else:
                self._running[number] = sequence
        return number

    def checked(
        self, prompt: Sequence[int], params: SamplingParams, cache: SequenceCache | None = None
    ) -> list[int]:
        """Return the prompt of a request that can run; the arguments and errors of `add`."""
        ids = check_prompt(prompt, self._model.vocabulary)
        if cache is not None:
            if cache.network != self._pool.network:
                raise UsageError(
                    "The cache is another model's; take one from new_cache() of this model."
                )
            return ids
        limit = self._pool.limit
        if limit is not None and blocks_for(len(ids) + params.max_tokens - 1) > limit:
            raise UsageError(
                "The prompt has {prompt} tokens and its answer up to {answer}; the caches have "
                "room for {room} in all. Ask for fewer, or give the caches more room.",
                prompt=len(ids),
                answer=params.max_tokens,
                room=limit * BLOCK,
            )
        return ids

    def cancel(self, request: int) -> None:
        """Forget a request; unknown numbers (finished ones) are ignored."""
        with self._lock:
            sequence = self._running.pop(request, None)
            if sequence is None:
                self._waiting = deque(w for w in self._waiting if w.number != request)
                return
            self._speculation.end(sequence.guesser)
            if not sequence.own_cache:
                sequence.cache.release()
                return
            if self._prefixes is not None:
                self._prefixes.keep(sequence.cache)
            sequence.cache.truncate(0)

    def step(self) -> list[Step]:
        """Run one forward pass; give a step for each request that has a new token.

        A request that goes wrong, in the pass or in its own part (its constraint, its detokenizer),
        leaves, its error is in `failed`, and the others go on.
        """
        with computing(), self._lock:
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
            steps = self._follow_all(sequences, self._run(sequences, chunks))
            if decoding and not self.failed:
                guessed = sum(len(chunk.tokens) - 1 for chunk in chunks)
                self._speculation.took(time.perf_counter() - now, guessed)
            return steps

    def generate(
        self, prompt: Sequence[int], params: SamplingParams, cache: SequenceCache | None = None
    ) -> Iterator[Step]:
        """Run one request to its end; closing the iterator cancels it."""
        number = self.add(prompt, params, cache)
        yield from self._read([number])

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> Iterator[Step]:
        """Run several requests side by side; `Step.request` is the index of the prompt."""
        numbers: list[int] = []
        try:
            for prompt in prompts:
                numbers.append(self.add(prompt, params))
            for step in self._read(numbers):
                yield replace(step, request=numbers.index(step.request))
        finally:
            for number in numbers:
                self.cancel(number)

    def _read(self, numbers: Sequence[int]) -> Iterator[Step]:
        """Run steps, and take those of other threads, until some requests have finished."""
        arrived: deque[Step | Exception] = deque()
        try:
            with self._lock:
                self._arrived |= dict.fromkeys(numbers, arrived)
            while True:
                with self._lock:
                    if not arrived:
                        if not any(self._has(number) for number in numbers):
                            return
                        self.step()
                while arrived:
                    one = arrived.popleft()
                    if isinstance(one, Exception):
                        raise one
                    yield one
        finally:
            for number in numbers:
                self.cancel(number)
                self._arrived.pop(number, None)

    def _text_before(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the end of a prompt whose text the answer continues."""
        turns = (i for i in range(len(prompt), 0, -1) if prompt[i - 1] in self._turn_ids)
        return prompt[next(turns, 0) :]

    def _has(self, number: int) -> bool:
        return number in self._running or any(w.number == number for w in self._waiting)

    def _hand_out(self, steps: Iterable[Step]) -> None:
        """Put what a step has brought to those who iterate over a request's steps."""
        for step in steps:
            if step.request in self._arrived:
                self._arrived[step.request].append(step)
        for number, error in self.failed.items():
            if number in self._arrived:
                self._arrived[number].append(error)

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

    def _in_pool(self) -> Iterator[RunningSequence]:
        return (sequence for sequence in self._running.values() if sequence.own_cache)

    def _plan(self) -> tuple[list[RunningSequence], list[Chunk]]:
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

    def _run(self, sequences: list[RunningSequence], chunks: list[Chunk]) -> list[Tensor | None]:
        """Run a pass; if it goes wrong, each request's part alone, so that only the faulty end.

        Returns:
            Logits for each request, None for one that has failed.
        """
        try:
            return list(self._model.forward_chunks(chunks))
        except Exception as error:
            if len(chunks) == 1:
                self._fail(sequences[0], error)
                return [None]
        parts = zip(sequences, chunks, strict=True)
        return [rows for one, chunk in parts for rows in self._run([one], [chunk])]

    def _fail(self, sequence: RunningSequence, error: Exception) -> None:
        self.cancel(sequence.number)
        self.failed[sequence.number] = error

    def _follow_all(
        self, sequences: list[RunningSequence], logits: list[Tensor | None]
    ) -> list[Step]:
        """Choose the tokens of all requests of a pass."""
        steps: list[Step] = []
        left = list(zip(sequences, logits, strict=True))
        try:
            while left:
                sequence, rows = left[0]
                try:
                    steps += [] if rows is None else self._follow(sequence, rows)
                except BaseException as error:
                    self._fail(sequence, as_fault_of_request(error))
                del left[0]
        finally:
            for sequence, _ in left:  # interrupted: the next pass computes their newest token again
                sequence.forget_newest()
            self._hand_out(steps)
        return steps

    def _follow(self, sequence: RunningSequence, rows: Tensor) -> Iterator[Step]:
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
                sequence.forget_newest()
            if ended:
                self.cancel(sequence.number)
            yield step
            if ended or step.token != guessed:
                break
        self._speculation.learn(sequence.guesser, right)

    def _choose(self, sequence: RunningSequence, logits: Tensor) -> Step:
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
