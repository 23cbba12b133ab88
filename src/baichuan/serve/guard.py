"""What stands before every route: names of the server, pages that may call, key, size and time
limits, disconnects, request ids, access log.

A plain ASGI middleware. Knows no route and no model.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan.language import translate
from baichuan.serve.faults import ApiError, internal_error
from baichuan.serve.hosts import AllowedHosts
from baichuan.serve.metrics import Metrics
from baichuan.serve.responses import event

#: Whose answers cost the model's time; the other paths need no key.
_PROTECTED = ("/v1/", "/tokenize")
_SECONDS_FOR_BODY = 30.0

_log = logging.getLogger(__name__)
access_log = logging.getLogger("baichuan.access")


class Guard:
    """Lets a request through to `app` with its body read, and ends it when nobody waits for it.

    Args:
        app: what answers.
        metrics: counts the responses.
        hosts: the names that requests may call the server by.
        origins: web pages of other origins that may call (CORS).
        api_keys: one of them must come as `Authorization: Bearer KEY`; without any, none is needed.
        max_body: bytes of a request's body.
        timeout: seconds from the body to the end of the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        hosts: AllowedHosts,
        origins: Sequence[str],
        api_keys: Sequence[str],
        max_body: int,
        timeout: float,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = hosts
        self._origins = origins
        # It answers preflights, and lets allowed pages read errors too.
        self._guarded: ASGIApp = self._guard
        if origins:
            self._guarded = CORSMiddleware(
                self._guard, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
            )
        self._keys = [key.encode() for key in api_keys]
        self._max_body = max_body
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        scope["state"]["exchange"] = exchange
        try:
            self._hosts.check(Headers(scope=scope), self._origins)
            await self._guarded(scope, receive, exchange.send)
        except ApiError as error:
            await exchange.fail(error, exchange.send)
        except asyncio.CancelledError:  # the server ends, and uvicorn logs what a task raises
            message = translate("The server is shutting down.")
            await exchange.fail(ApiError("unavailable", message), exchange.send)
        except Exception:
            _log.exception("a request failed")
            await exchange.fail(internal_error(), exchange.send)
        finally:
            exchange.close(self._metrics)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: _Exchange = scope["state"]["exchange"]
        try:
            self._check_key(scope)
            body = await self._read(scope, receive)
            await self._answer(scope, receive, send, body)
        except ApiError as error:
            await exchange.fail(error, send)
        except _GoneError:
            exchange.gone = True

    def _check_key(self, scope: Scope) -> None:
        if not self._keys or not scope["path"].startswith(_PROTECTED):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        # All are compared, so that the time tells nothing.
        right = [hmac.compare_digest(key.strip(), one) for one in self._keys]
        if kind.lower() != b"bearer" or not any(right):
            message = translate("A valid API key is needed: Authorization: Bearer KEY.")
            raise ApiError("unauthorized", message)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body; refuse one that is too large before it is here."""
        declared = int(dict(scope["headers"]).get(b"content-length", b"0"))
        body, more = bytearray(), True
        with anyio.move_on_after(_SECONDS_FOR_BODY):
            while more and max(declared, len(body)) <= self._max_body:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                body += message.get("body", b"")
                more = message.get("more_body", False)
        if max(declared, len(body)) > self._max_body:
            sentence = translate(
                "The body is too large; at most {most:,} bytes are allowed.", most=self._max_body
            )
            raise ApiError("large_body", sentence)
        if more:
            raise ApiError("slow_request", translate("The body did not arrive in time."))
        return bytes(body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Run the app until it has answered, time is up, or the client has gone."""
        exchange: _Exchange = scope["state"]["exchange"]
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await anyio.sleep_forever()
            raise AssertionError("never wakes")

        async def watch(answering: anyio.CancelScope) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            exchange.gone = not exchange.ended  # uvicorn says so after every answer
            answering.cancel()

        timed_out = True
        with anyio.move_on_after(self._timeout):
            async with anyio.create_task_group() as group:
                group.start_soon(watch, group.cancel_scope)
                await self._app(scope, replay, send)
                group.cancel_scope.cancel()
            timed_out = False
        if timed_out:
            message = translate(
                "The answer took longer than {seconds:g} seconds.", seconds=self._timeout
            )
            raise ApiError("timeout", message)


class _Exchange:
    """One request and its response, as far as the guard must know it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self._status: int | None = None
        self._streams = False
        self.ended = False
        self.gone = False
        self.id = uuid.uuid4().hex
        # Routes put there what must end with the request.
        self._until_over = ExitStack()
        scope.setdefault("state", {})["until_over"] = self._until_over

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            self._streams = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in headers
            )
            message = {**message, "headers": headers}
        else:
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: ApiError, send: Send) -> None:
        """Answer with an error, or end a stream that has begun with one."""
        if self._status is None:
            await error.response()(self._scope, _nothing, send)
        elif self._streams and not self.ended:
            # To a client that does not read, it cannot be said.
            with anyio.move_on_after(1):
                await send({"type": "http.response.body", "body": event(error.body)})

    def close(self, metrics: Metrics) -> None:
        """End the work on the request, and write a line for the access log.

        It has no prompt, no answer, no key and no query.
        """
        self._until_over.close()
        state, seconds = self._scope["state"], time.perf_counter() - self._began
        client = self._scope.get("client")
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "id": self.id,
            "client": client[0] if client else None,
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self._status,
            "seconds": round(seconds, 4),
            "complete": self.ended,
            "disconnected": self.gone,
        }
        with suppress(KeyError):
            usage = state["usage"]
            line["prompt_tokens"] = usage.prompt_tokens
            line["completion_tokens"] = usage.completion_tokens
        access_log.info(json.dumps(line, ensure_ascii=False))
        route = getattr(self._scope.get("route"), "path", "other")
        metrics.responses.labels(route, str(self._status or "none")).inc()


class _GoneError(Exception):
    """The client left before its request was complete."""


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
