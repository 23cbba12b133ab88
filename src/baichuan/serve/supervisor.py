"""The HTTP process's side of the model process: starts it, talks to it, starts it again.

When the model process dies, whatever was under way fails with a sentence, and a new one is started;
until it has loaded the model, calls fail at once. Knows `protocol.py`; no HTTP and no torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

from baichuan.language import translate
from baichuan.serve.interrupts import deferred_interrupts
from baichuan.serve.protocol import (
    Call,
    Cancel,
    Close,
    Failure,
    Ping,
    Pong,
    Ready,
    Replies,
    Reply,
    WorkerOptions,
)

#: Seconds before a model process that died without having been ready is started again, doubled
#: each time up to the second value.
_PAUSES = (1.0, 60.0)
_SECONDS_TO_END = 10.0
#: Seconds between two questions whether the model process is at work.
_SECONDS_BETWEEN_PINGS = 2.0
#: Seconds without an answer after which the server is no longer healthy, and after which the
#: process is started again. Its receiving thread waits for nothing but the interpreter.
_SECONDS_OF_SILENCE = (10.0, 60.0)
#: The same for one forward pass: 512 tokens of a 13B take minutes on a slow machine.
_SECONDS_OF_A_PASS = (300.0, 1800.0)

_log = logging.getLogger(__name__)


class ModelProcess:
    """One model process at a time, restarted when it dies; belongs to one event loop.

    Args:
        options: for the worker.
        give_up: called when the very first start fails, with the reason.

    Attributes:
        ready: what the process said when it had loaded the model; None before and in between.
        starts: how often a process was started.
    """

    def __init__(self, options: WorkerOptions, give_up: Callable[[str], None]) -> None:
        self._options = options
        self._give_up = give_up
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Queue[Reply]] = {}
        self._sender = ThreadPoolExecutor(1, "to the model")
        self._process: Any = None
        self._connection: Connection | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._asked: float | None = None  # when the question was sent that has no answer yet
        self._pass_seconds = 0.0
        self.ready: Ready | None = None
        self.starts = 0

    @property
    def responsive(self) -> bool:
        """Whether the model is loaded and its process answers and goes on."""
        silent = 0.0 if self._asked is None else time.monotonic() - self._asked
        return (
            self.ready is not None
            and silent < _SECONDS_OF_SILENCE[0]
            and self._pass_seconds < _SECONDS_OF_A_PASS[0]
        )

    def start(self) -> None:
        """Start in the background."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """End the process and wait for that."""
        self._closing = True
        self._send(-1, Close())
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._sender.shutdown()

    def kill(self) -> None:
        """End the process whatever it does, where no event loop runs any more."""
        if self._process is not None:
            self._process.kill()

    @contextmanager
    def call(self, call: Call) -> Iterator[asyncio.Queue[Reply]]:
        """Send a call; replies arrive in the queue, a `Failure` being the last.

        Leaving the block ends the call, so that the engine stops working on it.
        """
        number = next(self._numbers)
        replies = self._replies[number] = asyncio.Queue()
        try:
            if self.ready is None:
                replies.put_nowait(_unavailable())
            else:
                self._send(number, call)
            yield replies
        finally:
            del self._replies[number]
            self._send(number, Cancel())

    async def ask(self, call: Call) -> Reply:
        """Send a call that has one reply and wait for it."""
        with self.call(call) as replies:
            return await replies.get()

    def _send(self, number: int, call: Call) -> None:
        if self._connection is not None:
            self._sender.submit(self._send_or_fail, self._connection, number, call)

    def _send_or_fail(self, connection: Connection, number: int, call: Call) -> None:
        """Send a call (on a thread), or answer it with what went wrong."""
        try:
            connection.send((number, call))
        except (OSError, EOFError):  # it died or was closed, which the receiver notices
            pass
        except Exception:  # a call that cannot be pickled; nothing of it was sent
            _log.exception("a call could not be sent to the model process")
            failure = Failure("internal", translate("An error in the server; its log says more."))
            self._loop.call_soon_threadsafe(self._take, number, failure)

    async def _watch(self, process: Any) -> None:
        """Kill a process that no longer answers, or whose forward pass does not end."""
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_PINGS)
            if self.ready is None:
                continue
            self._asked = time.monotonic()
            try:
                reply = await asyncio.wait_for(self.ask(Ping()), _SECONDS_OF_SILENCE[1])
            except Exception as error:
                _log.error("the model process does not answer; it is started again: %r", error)
                process.kill()
                return
            self._asked = None
            self._pass_seconds = reply.pass_seconds if isinstance(reply, Pong) else 0.0
            if self._pass_seconds > _SECONDS_OF_A_PASS[1]:
                _log.error("a forward pass does not end; the model process is started again")
                process.kill()
                return

    async def _supervise(self) -> None:
        pause, most = _PAUSES
        while not self._closing:
            was_ready = await self._run_one()
            pause = _PAUSES[0] if was_ready else min(2 * pause, most)
            await asyncio.sleep(0 if was_ready else pause)

    async def _run_one(self) -> bool:
        """Run one process to its end; say whether it ever was ready."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._process, self._connection = _spawn(self._options)
        self.starts += 1

        def receive(connection: Connection) -> None:
            """Hand replies to the event loop until there can be no more (on a thread)."""
            try:
                with connection, suppress(EOFError, OSError):
                    while True:
                        loop.call_soon_threadsafe(self._dispatch, connection.recv())
            finally:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(ended.set)

        Thread(target=receive, args=(self._connection,), daemon=True).start()
        watching = asyncio.create_task(self._watch(self._process))
        try:
            await ended.wait()
        finally:
            watching.cancel()
            self._asked, self._pass_seconds = None, 0.0
            was_ready, self.ready = self.ready is not None, None
            self._connection = None
            for replies in self._replies.values():
                replies.put_nowait(_unavailable())
            # One that is still loading, or was not asked to end, will not end by itself.
            ending = ended.is_set() or (self._closing and was_ready)
            patience = _SECONDS_TO_END if ending else 0.0
            await asyncio.shield(loop.run_in_executor(None, _end, self._process, patience))
        _log.error("the model process ended with code %s", self._process.exitcode)
        return was_ready

    def _dispatch(self, replies: Replies) -> None:
        for number, reply in replies:
            self._take(number, reply)

    def _take(self, number: int, reply: Reply) -> None:
        if number in self._replies:
            self._replies[number].put_nowait(reply)
        elif isinstance(reply, Ready):
            self.ready = reply
            room, gigabytes = reply.cache_tokens, reply.cache_bytes / 1e9
            _log.info("the model is ready; caches of up to %d tokens (%.1f GB)", room, gigabytes)
        elif number < 0 and isinstance(reply, Failure):
            _log.error("the model cannot be loaded: %s", reply.message)
            if self.starts == 1:
                self._give_up(reply.message)


def _spawn(options: WorkerOptions) -> tuple[Any, Connection]:
    """Start a model process; give it and our end of the connection."""
    # Not forked: torch's threads and locks do not survive that.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, options), name="model", daemon=True)
    # Ctrl+C goes to both processes and is for this one. (Starting the tracker would unblock it.)
    resource_tracker.ensure_running()
    with deferred_interrupts():
        process.start()
    theirs.close()
    return process, ours


def _work(connection: Connection, options: WorkerOptions) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    from baichuan.serve.worker import main  # torch, in the model process only

    main(connection, options)


def _end_with_parent() -> None:
    """End with the HTTP process if that is killed, whatever is being loaded or computed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _end(process: Any, patience: float) -> None:
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()


def _unavailable() -> Failure:
    return Failure(
        "unavailable", translate("The model is being loaded; ask again in a few seconds.")
    )
