"""The model process: loads a model, runs its engine and answers the calls of `protocol.py`.

Knows model, tokenizer and engine; no HTTP.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property, partial
from multiprocessing.connection import Connection
from typing import Any, cast

from baichuan.checkpoint.load import load, load_draft
from baichuan.engine.runner import Request, Runner
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.steps import Step
from baichuan.errors import (
    BaichuanError,
    ContextLengthError,
    NumericalError,
    QueueFullError,
    StoppedError,
    UsageError,
)
from baichuan.language import translate
from baichuan.model.budget import bytes_per_token, tokens_that_fit
from baichuan.model.chatting import role_ids
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.prompt import Message, encode_chat
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.serve.grammar import JsonGrammars, token_bytes
from baichuan.serve.protocol import (
    Call,
    Cancel,
    Close,
    Count,
    Counts,
    Encode,
    Encoded,
    Failure,
    Job,
    Piece,
    Ping,
    Pong,
    Prompt,
    Ready,
    Replies,
    Reply,
    TokenLogprob,
    WorkerOptions,
)

_SEEDS = 2**63
#: Schemas compiled at a time, each in a process that ends itself when it takes too long.
_COMPILERS = 4

_log = logging.getLogger(__name__)


def main(connection: Connection, options: WorkerOptions) -> None:
    """Load, say `Ready` or `Failure`, and answer until the other end is closed or gone."""
    # They are for the HTTP process, which lets the answers under way end before it closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sending = threading.Lock()

    def send(replies: Replies) -> None:
        with sending:
            connection.send(replies)

    try:
        model, tokenizer = load(options.model, **options.where)
        draft = None
        if options.draft is not None:
            draft = load_draft(options.draft, tokenizer, device=options.where.get("device"))
    except Exception as error:
        send([(-1, failure(error))])
        return
    room = options.cache_tokens or tokens_that_fit(model, options.max_batch, draft)
    limits = options.max_batch, options.max_queue, room
    gone = suppress(EOFError, OSError)
    with Worker(model, tokenizer, send, *limits, options.speculate, draft) as worker, gone:
        ready = Ready(worker.context_length, room, room * bytes_per_token(model, draft))
        send([(-1, ready)])
        call: Call | None = None
        while not isinstance(call, Close):
            number, call = connection.recv()
            worker.handle(number, call)


def failure(error: Exception) -> Failure:
    """Say what went wrong to the person who asked; what is our fault is logged, not told."""
    if isinstance(error, ContextLengthError):
        return Failure("too_long", str(error))
    if isinstance(error, QueueFullError):
        return Failure("busy", str(error))
    if isinstance(error, StoppedError):
        return Failure("unavailable", str(error))
    if isinstance(error, NumericalError):
        return Failure("internal", str(error))
    if isinstance(error, BaichuanError):
        return Failure("invalid", str(error))
    _log.error("a call failed", exc_info=error)
    return Failure("internal", translate("An error in the server; its log says more."))


class Worker:
    """Answers calls with one engine; also a context manager.

    Args:
        model, tokenizer: from `baichuan.load`.
        send: takes replies, from any thread.
        max_batch, max_queue: as `Runner` takes them.
        cache_tokens, speculate, draft: as `Engine` takes them.

    Attributes:
        context_length: tokens that a prompt and its answer may have together.
    """

    def __init__(
        self,
        model: BaichuanForCausalLM,
        tokenizer: BaichuanTokenizer,
        send: Callable[[Replies], None],
        max_batch: int,
        max_queue: int,
        cache_tokens: int,
        speculate: bool | None = None,
        draft: BaichuanForCausalLM | None = None,
    ) -> None:
        self._config = model.config
        self.context_length = min(model.config.context_length, cache_tokens)
        self._defaults = model.generation_config
        self._roles = role_ids(model.generation_config)
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes(tokenizer)
        self._send = send
        self._requests: dict[int, list[Request]] = {}
        self._compiling: set[int] = set()  # calls whose schema is being compiled
        self._lock = threading.RLock()  # of both
        self._most_compiling = max_batch + max_queue
        self._compilers = ThreadPoolExecutor(_COMPILERS, "schemas")
        self._of_pass: list[tuple[int, Reply]] = []  # belongs to the engine's thread
        engine = model.engine(
            tokenizer, cache_tokens=cache_tokens, speculate=speculate, draft=draft
        )
        self._runner = Runner(
            engine, max_batch=max_batch, max_queue=max_queue, delivered=self._send_pass
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._runner.close()
        if "_grammars" in self.__dict__:  # made when the first schema comes
            self._grammars.__exit__()

    def handle(self, number: int, call: Call) -> None:
        """Take a call and return at once; its replies come when there are any."""
        try:
            if isinstance(call, Job):
                self._start(number, call)
            elif isinstance(call, Cancel):
                self._cancel(number)
            elif isinstance(call, Encode):
                self._send([(number, Encoded(self._encode(call.prompt)))])
            elif isinstance(call, Count):
                self._send([(number, Counts(asdict(self._runner.stats())))])
            elif isinstance(call, Ping):
                self._send([(number, Pong(self._runner.pass_seconds))])
        except Exception as error:
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        self._cancel(number)
        self._send([(number, failure(error))])

    def _cancel(self, number: int) -> None:
        with self._lock:
            self._compiling.discard(number)
            for request in self._requests.pop(number, ()):
                request.cancel()

    def _start(self, number: int, job: Job) -> None:
        prompts = [self._encode(prompt) for prompt in job.prompts]
        settings = dict(job.settings)
        if job.schema is None:
            self._submit(number, job, prompts, settings)
            return
        with self._lock:
            if len(self._compiling) >= self._most_compiling:
                raise QueueFullError(
                    "{count} requests are waiting already, as many as may; ask again later.",
                    count=len(self._compiling),
                )
            self._compiling.add(number)
        self._compilers.submit(self._compile, number, job, prompts, settings)

    def _compile(
        self, number: int, job: Job, prompts: list[list[int]], settings: dict[str, Any]
    ) -> None:
        """Submit a call once its schema is compiled, unless it was cancelled (on a thread)."""
        try:
            if number not in self._compiling:
                return
            assert job.schema is not None
            settings["constraint"] = self._grammars.constraint(job.schema)
            with self._lock:
                if number in self._compiling:
                    self._compiling.discard(number)
                    self._submit(number, job, prompts, settings)
        except Exception as error:
            self._fail(number, error)

    def _submit(
        self, number: int, job: Job, prompts: list[list[int]], settings: dict[str, Any]
    ) -> None:
        params = [self._params(len(ids), settings) for ids in prompts]
        with self._lock:
            requests = self._requests[number] = []
            for index in range(len(prompts) * job.n):
                prompt, answer = divmod(index, job.n)
                deliver = partial(self._deliver, number, index)
                mine = _with_seed(params[prompt], answer)
                requests.append(self._runner.submit(prompts[prompt], mine, deliver))

    def _deliver(self, number: int, index: int, arrived: Step | Exception) -> None:
        """Take what the engine gives (on its thread)."""
        if isinstance(arrived, Exception):
            self._of_pass.append((number, failure(arrived)))
            return
        reason = arrived.finish_reason
        usage = arrived.usage
        piece = Piece(
            index=index,
            text=arrived.text,
            finish_reason="stop" if reason == "eos" else reason,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            logprob=self._logprob(arrived),
        )
        self._of_pass.append((number, piece))

    def _send_pass(self) -> None:
        """Send the pieces of one pass together: a message for each would wake the other process."""
        replies, self._of_pass = self._of_pass, []
        if replies:
            self._send(replies)

    def _logprob(self, step: Step) -> TokenLogprob | None:
        if step.logprobs is None:
            return None
        top = [(self._bytes_of(token), value) for token, value in step.logprobs.top]
        return TokenLogprob(self._bytes_of(step.token), step.logprobs.chosen, top)

    def _bytes_of(self, token: int) -> bytes:
        # A network may have more logits than the vocabulary has pieces.
        return self._token_bytes[token] if token < len(self._token_bytes) else b""

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode_text(prompt)
        if prompt and isinstance(prompt[0], dict):
            user, assistant = self._roles
            return encode_chat(
                self._tokenizer,
                cast(list[Message], prompt),
                user_token_id=user,
                assistant_token_id=assistant,
            )
        ids = cast(list[int], list(prompt))
        if any(not 0 <= i < self._config.vocab_size for i in ids):
            raise UsageError(
                "The prompt has token ids that there are not; they go from 0 to {last}.",
                last=self._config.vocab_size - 1,
            )
        return ids

    def _params(self, prompt_tokens: int, settings: dict[str, Any]) -> SamplingParams:
        """Give the sampling parameters of an answer, which must fit behind its prompt.

        Who does not say how long it may be gets the checkpoint's length, or what is left. That much
        room is set aside when the request begins, so that nothing that has begun is ever short.
        """
        eos = {} if self._defaults.eos_token_id is not None else {"eos_token_ids": self._ends}
        params = SamplingParams.from_generation_config(self._defaults, **eos, **settings)
        return params.within(self.context_length, prompt_tokens, settings.get("max_tokens"))

    @property
    def _ends(self) -> tuple[int, ...]:
        ids = self._config.eos_token_id
        return tuple(ids) if isinstance(ids, list) else (2 if ids is None else ids,)

    @cached_property
    def _grammars(self) -> JsonGrammars:
        return JsonGrammars(self._tokenizer, self._config.vocab_size, self._roles, self._ends[0])


def _with_seed(params: SamplingParams, answer: int) -> SamplingParams:
    """Give each answer to the same prompt a seed of its own."""
    if params.seed is None or answer == 0:
        return params
    return params.changed(seed=(params.seed + answer) % _SEEDS)
