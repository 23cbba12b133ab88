"""Connections of clients: HTTP/1.1 with deadlines, and fewer of them than there are descriptors.

Knows uvicorn's protocol and `faults.py`; no route.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import ClassVar

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from baichuan.language import translate
from baichuan.serve.faults import ApiError

#: Connections that asyncio accepts before it looks after the others again.
_BACKLOG = 64
#: Connections of a process that may have any number of descriptors: each takes some memory.
_MOST = 4096
#: Descriptors kept free: for those that are accepted and not yet counted, for files and pipes.
_ROOM = 5 * _BACKLOG

_log = logging.getLogger(__name__)


class HttpConnection(H11Protocol):
    """A connection that waits for its client for a bounded time, and makes room for another one.

    - The headers of a request must be complete in `seconds_for_headers`, from the connection's
      beginning or the end of the answer before. (The time of the body is the guard's.)
    - A client that lets its answer lie for `seconds_for_reading` is cut off. Only a full send
      buffer counts: an answer may take as long as it likes to begin.
    - A connection above `most` replaces the one that has waited longest for its client. While all
      are being answered, it gets the status 503.

    Attributes:
        most: connections of a server.
        waiting: those that have no complete request, in the order in which they began to wait.
    """

    most: ClassVar[int] = _MOST
    waiting: ClassVar[dict[HttpConnection, None]]
    seconds_for_headers: ClassVar[float] = 10.0
    seconds_for_reading: ClassVar[float] = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, if need be that of a connection whose client does nothing."""
        self._headers, self._reading = _Timer(self.loop), _Timer(self.loop)
        self._begun = self._refused = False
        self._unsent = math.inf
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._make_room()
        self._update()

    def data_received(self, data: bytes) -> None:
        """Take bytes of the client."""
        if self._refused:
            return
        self._begun = True
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._begun = False
        super().on_response_complete()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        super().connection_lost(exc)
        self.waiting.pop(self, None)
        self._headers.stop()
        self._reading.stop()

    def pause_writing(self) -> None:
        """Let the client read what there is, but not for ever."""
        super().pause_writing()
        self._reading.start(self.seconds_for_reading, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        self._reading.stop()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, as far as an answer still fits in (uvicorn calls it)."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = translate("This is not a valid HTTP/1.1 request.")
            self._refuse(ApiError("invalid", message))
        self.transport.close()

    def _update(self) -> None:
        """Note whose turn it is: the client's, or ours."""
        request = self.cycle
        answering = request is not None and not request.response_complete
        if answering:
            self._headers.stop()
        elif not self._headers.running:
            self._unsent = math.inf
            self._headers.start(self.seconds_for_headers, self._give_up)
        if answering and not request.more_body:
            self.waiting.pop(self, None)
        else:
            self.waiting.setdefault(self)

    def _give_up(self) -> None:
        """End a connection whose client sends no request, and reads no more of the answer."""
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self._headers.start(self.seconds_for_headers, self._give_up)
            return
        if self._begun and not unsent and self.conn.our_state is h11.IDLE:
            _log.warning("a request's headers did not arrive in time")
            message = translate("The headers did not arrive in time.")
            self._refuse(ApiError("slow_request", message))
        self.transport.abort()

    def _make_room(self) -> None:
        longest = next(iter(self.waiting), None)
        if longest is None:
            _log.warning("%d connections are being answered; another one is refused", self.most)
            message = translate("The server has too many connections; ask again in a few seconds.")
            self._refuse(ApiError("too_many_connections", message))
            self._refused = True
            self.transport.write_eof()
            return
        _log.warning("%d connections; the one that sent nothing for longest is closed", self.most)
        del self.waiting[longest]
        self.connections.discard(longest)
        longest.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        response = error.response()
        headers = [*self.server_state.default_headers, *response.raw_headers, CLOSE_HEADER]
        status = response.status_code
        reason = HTTPStatus(status).phrase.encode()
        for event in (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")


def limited(most: int | None = None) -> type[HttpConnection]:
    """Return the protocol of one server, for `most` connections or as many as are safe."""

    class Limited(HttpConnection):
        waiting: ClassVar[dict[HttpConnection, None]] = {}

    Limited.most = most or _limit()
    return Limited


def backlog() -> int:
    """Return how many connections are accepted before the others are looked after again.

    A connection that is closed frees its descriptor some rounds later; meanwhile as many arrive in
    each. The room that is kept holds five times as many.
    """
    return max(1, min(_BACKLOG, _descriptors() // 10))


def _limit() -> int:
    """Return a number of connections that leaves descriptors free."""
    allowed = _descriptors()
    return max(1, min(_MOST, allowed - min(_ROOM, allowed // 2)))


def _descriptors() -> int:
    """Return how many descriptors this process may have."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return _MOST + _ROOM
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST + _ROOM if allowed == resource.RLIM_INFINITY else allowed


class _Timer:
    """A call that is made once, later, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, call)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
