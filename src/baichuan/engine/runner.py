"""The engine in a thread of its own: requests from any thread, each answered as its steps come.

An `Engine` belongs to one thread. A `Runner` owns that thread, calls `Engine.step` while anything
runs and hands each step to its request, by a blocking iterator or by a callback for event loops.
Knows no model, no text and no HTTP.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from baichuan.engine.faults import as_fault_of_request
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.steps import Step
from baichuan.errors import QueueFullError, StoppedError, UsageError

#: Takes each step of a request and, should it fail, the error in place of any further step. Called
#: on the engine's thread, which waits meanwhile: it must return at once and raise nothing.
Deliver = Callable[[Step | Exception], None]

MAX_BATCH = 32
MAX_QUEUE = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnerStats:
    """What a runner does now, and what it has done since it began.

    Attributes:
        running: requests in the batch.
        queued: requests that wait for a place in it, or for room in the caches.
        held_tokens: positions of the caches of the running requests, in whole blocks.
        kept_tokens: positions kept for reuse, which others may have as soon as they need them.
        limit_tokens: most of both together; 0 if there is no bound.
        finished: requests answered to their end.
        cancelled: requests that their senders gave up.
        failed: requests that ended with an error.
        prompt_tokens: tokens of the prompts of all answers that have begun, of which
            `cached_tokens` did not have to be computed.
        completion_tokens: tokens generated.
        passes: calls of `Engine.step`.
    """

    running: int = 0
    queued: int = 0
    held_tokens: int = 0
    kept_tokens: int = 0
    limit_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    passes: int = 0


class Request(Iterator[Step]):
    """A request on its way: iterate for its steps, leave or `cancel` to give it up.

    As a context manager it is cancelled at the end of the block, whatever ends it. Without a
    callback its steps wait here until they are asked for, so a slow reader holds up nobody; there
    are at most `params.max_tokens`.

    Attributes:
        prompt: token ids.
        params: how tokens are chosen and when the answer stops.
    """

    def __init__(
        self, runner: Runner, prompt: Sequence[int], params: SamplingParams, deliver: Deliver | None
    ) -> None:
        self.prompt = prompt
        self.params = params
        self._runner = runner
        self._arrived: queue.SimpleQueue[Step | Exception | None] = queue.SimpleQueue()
        self._by_callback = deliver is not None
        self._deliver: Deliver = self._arrived.put if deliver is None else deliver
        self._exhausted = False
        # The runner's own, under its lock.
        self._cancelled = False
        self._latest: Step | None = None

    def __next__(self) -> Step:
        """Wait for the next step.

        Raises:
            StopIteration: the answer is complete, or the request was cancelled.
            TypeError: the steps go to a callback.
            Exception: whatever went wrong in the engine; StoppedError if it was closed.
        """
        if self._by_callback:
            raise TypeError("the steps of this request go to its callback")
        arrived = None if self._exhausted else self._arrived.get()
        self._exhausted = not isinstance(arrived, Step) or arrived.finish_reason is not None
        if isinstance(arrived, Exception):
            raise arrived
        if arrived is None:
            raise StopIteration
        return arrived

    def cancel(self) -> None:
        """Give the request up: it leaves the batch before the next forward pass.

        From any thread, at any time. What has arrived stays to be read; the iterator then ends. A
        callback may still get the step that is being computed.
        """
        self._runner._cancel(self)
        self._arrived.put(None)

    close = cancel

    def __enter__(self) -> Request:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


class Runner:
    """Runs an engine in the background; also a context manager.

    An error of a request, be it in a forward pass, in its constraint, its detokenizer or its
    callback, ends that request alone; the others are served all the same.

    Args:
        engine: nobody else may use it from now on.
        max_batch: requests that run side by side; the others queue, first come first served.
        max_queue: requests that may queue before more are refused.
        delivered: called on the engine's thread whenever callbacks may have been, so that what they
            collect of one pass can go on together. It must return at once and raise nothing.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch: int = MAX_BATCH,
        max_queue: int = MAX_QUEUE,
        delivered: Callable[[], None] = lambda: None,
    ) -> None:
        for name, given, least in (("max_batch", max_batch, 1), ("max_queue", max_queue, 0)):
            if given < least:
                raise UsageError(
                    "{name} is {given}; allowed is {least} or more.",
                    name=name,
                    given=given,
                    least=least,
                )
        self._engine = engine
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._delivered = delivered
        self._changed = threading.Condition()
        self._queued: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._counts = dict.fromkeys(RunnerStats.__dataclass_fields__, 0)
        self._cache_use = engine.cache_use
        self._closed = False
        self._stopped = False
        self._pass_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, deliver: Deliver | None = None
    ) -> Request:
        """Queue a request and return at once; from any thread.

        Args:
            prompt: token ids, at least one.
            params: how to choose tokens and when to stop.
            deliver: gets the steps instead of the iterator. For asyncio:
                `lambda arrived: loop.call_soon_threadsafe(queue.put_nowait, arrived)`.

        Raises:
            UsageError: the request cannot run; see `Engine.add`.
            QueueFullError: as many requests wait as may.
            StoppedError: the runner is closed.
        """
        request = Request(self, self._engine.checked(prompt, params), params, deliver)
        with self._changed:
            if self._closed:
                raise _stopped()
            if len(self._queued) + len(self._running) >= self._max_batch + self._max_queue:
                raise QueueFullError(
                    "{count} requests are waiting already, as many as may; ask again later.",
                    count=len(self._queued) + self._cache_use.waiting,
                )
            self._queued.append(request)
            self._changed.notify_all()
        return request

    def stats(self) -> RunnerStats:
        """Count what is going on; from any thread, without waiting for a forward pass."""
        with self._changed:
            use = self._cache_use
            now = {
                "running": len(self._running) - use.waiting,
                "queued": len(self._queued) + use.waiting,
                "held_tokens": use.held,
                "kept_tokens": use.kept,
                "limit_tokens": use.limit or 0,
            }
            return RunnerStats(**{**self._counts, **now})

    @property
    def pass_seconds(self) -> float:
        """Seconds since the forward pass that is being computed began; 0 if there is none."""
        began = self._pass_began
        return 0.0 if began is None else time.monotonic() - began

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, finish those that are there and stop the thread.

        Args:
            drain_seconds: how long to wait; whoever is not answered by then gets a StoppedError.
        """
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._queued and not self._running, drain_seconds)
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _cancel(self, request: Request) -> None:
        with self._changed:
            request._cancelled = True
            if request in self._queued:
                self._queued.remove(request)
                self._counts["cancelled"] += 1
            self._changed.notify_all()

    def _run(self) -> None:
        """Do pass after pass until stopped: the engine's thread."""
        try:
            while self._wait_for_work():
                self._pass_began = time.monotonic()
                self._admit()
                self._pass()
                self._tell_delivered()
                self._pass_began = None
        finally:
            with self._changed:
                self._closed = True
                left = [*self._running.values(), *self._queued]
                self._queued.clear()
            self._fail(left, _stopped())
            self._tell_delivered()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to compute; False once stopped."""
        with self._changed:
            while True:
                self._drop_cancelled()
                self._cache_use = self._engine.cache_use
                if self._stopped or self._queued or self._running:
                    return not self._stopped
                self._changed.notify_all()  # whoever drains
                self._changed.wait()

    def _drop_cancelled(self) -> None:
        leaving = [number for number, request in self._running.items() if request._cancelled]
        for number in leaving:
            self._engine.cancel(number)
            del self._running[number]
            self._counts["cancelled"] += 1

    def _admit(self) -> None:
        """Let requests join the batch while it has room."""
        refused: list[tuple[Request, Exception]] = []
        with self._changed:
            while self._queued and len(self._running) < self._max_batch:
                request = self._queued.popleft()
                try:
                    number = self._engine.add(request.prompt, request.params)
                except BaseException as error:
                    refused.append((request, as_fault_of_request(error)))
                else:
                    self._running[number] = request
            self._cache_use = self._engine.cache_use
        for request, reason in refused:
            self._fail([request], reason)

    def _pass(self) -> None:
        try:
            steps = self._engine.step()
        except BaseException as error:
            _log.exception("the engine failed; its %d requests end", len(self._running))
            self._fail(list(self._running.values()), as_fault_of_request(error))
            return
        with self._changed:
            self._counts["passes"] += 1
            failed = [(self._running[number], e) for number, e in self._engine.failed.items()]
            arrivals = [(request, step) for step in steps if (request := self._count(step))]
            self._cache_use = self._engine.cache_use
        for request, step in arrivals:
            self._hand_over(request, step)
        for request, reason in failed:
            _log.error("a request failed; it ends", exc_info=reason)
            self._fail([request], reason)

    def _count(self, step: Step) -> Request | None:
        """Book a step; give its request if that still wants it."""
        request = self._running[step.request]
        self._counts["completion_tokens"] += 1
        if request._latest is None:
            self._counts["prompt_tokens"] += step.usage.prompt_tokens
            self._counts["cached_tokens"] += step.usage.cached_tokens
        request._latest = step
        if request._cancelled:
            return None
        if step.finish_reason is not None:
            del self._running[step.request]
            self._counts["finished"] += 1
        return request

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        """End requests with an error; they leave the engine."""
        with self._changed:
            failed = [number for number, request in self._running.items() if request in requests]
            for number in failed:
                self._engine.cancel(number)
                del self._running[number]
            self._cache_use = self._engine.cache_use
            self._counts["failed"] += len(requests)
            self._changed.notify_all()
        for request in requests:
            self._hand_over(request, error)

    def _hand_over(self, request: Request, arrived: Step | Exception) -> None:
        try:
            request._deliver(arrived)
        except BaseException:  # an event loop that is gone, say, or sys.exit()
            _log.warning("the callback of a request failed; it is cancelled", exc_info=True)
            self._cancel(request)

    def _tell_delivered(self) -> None:
        try:
            self._delivered()
        except BaseException:
            _log.exception("`delivered` failed; the engine goes on")


def _stopped() -> StoppedError:
    return StoppedError("The engine is stopped and takes no requests; start it anew.")
