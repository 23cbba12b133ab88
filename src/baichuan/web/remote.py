"""A server that speaks OpenAI's protocol, which answers instead of a model in this process.

It may be anyone's: what it sends is bounded in size and checked, and it leads nowhere else.
"""

from __future__ import annotations

import codecs
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from baichuan.errors import BaichuanError, UsageError
from baichuan.json_files import parse_json
from baichuan.transcript import Transcript
from baichuan.web.models import SETTINGS, Piece, Reply, with_system

#: Seconds until a server has said which models it has, and between two pieces of an answer.
_PATIENCE = 30
_SILENCE = 600
#: Bytes of a list of models or of an error, of one event, and of all events of an answer.
_MOST_JSON = 1 << 20
_MOST_EVENT = 1 << 20
_MOST_BYTES = 1 << 28
#: Characters of an answer, and of a model's name that are shown.
_MOST_TEXT = 1_000_000
_MOST_NAME = 100


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Refuse; a redirect is then an error like another."""


class RemoteModel:
    """The first model of a server that speaks OpenAI's protocol.

    Args:
        server: its address, with or without `/v1` at the end. A key for it is taken from
            `OPENAI_API_KEY`.
    """

    def __init__(self, server: str) -> None:
        if not server.lower().startswith(("http://", "https://")):
            raise UsageError(
                "The address of a server is {server!r}; it begins with http:// or https://.",
                server=server,
            )
        base = server.rstrip("/")
        self._base = base if base.endswith("/v1") else f"{base}/v1"
        self._opener = build_opener(_NoRedirect)
        models = self._asked(lambda: _within(_PATIENCE, self._models))
        if not models:
            raise BaichuanError("The server {server} has no model.", server=self._base)
        self._model = models[0]
        shown = self._model if len(self._model) <= _MOST_NAME else f"{self._model[:_MOST_NAME]}…"
        self.name = f"{shown} · {self._base.split('://')[-1].removesuffix('/v1')}"
        self.is_demo = False
        self.context: int | None = None
        self.defaults: Mapping[str, Any] = dict.fromkeys(SETTINGS)

    def answer(self, conversation: Transcript, settings: Mapping[str, Any]) -> Reply:
        """Return a reply that asks the server when it is first read; see `Model.answer`."""
        request = {
            "model": self._model,
            "messages": with_system(conversation),
            **settings,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return _RemoteReply(self._asked, lambda: self._open("/chat/completions", request))

    def _models(self) -> list[str]:
        with self._open("/models") as response:
            found = parse_json(_whole(response))
        return [_text(entry["id"], "id") for entry in found["data"]]

    def _open(self, path: str, body: Any = None) -> HTTPResponse:
        """Send a request; return the response to be read."""
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        request = Request(
            self._base + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        response: HTTPResponse = self._opener.open(request, timeout=_SILENCE)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise ValueError("the answer is compressed, which was not asked for")
        return response

    def _asked(self, question: Callable[[], Any]) -> Any:
        """Ask the server; what goes wrong is a sentence."""
        try:
            return question()
        except (BaichuanError, StopIteration):
            raise
        except HTTPError as error:
            reason: object = _reason(error)
        except (HTTPException, LookupError, TypeError, AttributeError, ValueError) as error:
            raise BaichuanError(
                "The server {server} did not answer as OpenAI's protocol says ({reason}).",
                server=self._base,
                reason=f"{type(error).__name__}: {error}",
            ) from error
        except OSError as error:
            raise BaichuanError(
                "The server {server} cannot be reached. Is it running, and is the address right?",
                server=self._base,
            ) from error
        raise BaichuanError("The server {server} says: {reason}", server=self._base, reason=reason)


class _RemoteReply(Iterator[Piece]):
    dropped = 0  # a server refuses what does not fit

    def __init__(
        self, asked: Callable[[Callable[[], Any]], Any], ask: Callable[[], HTTPResponse]
    ) -> None:
        self._asked, self._ask = asked, ask
        self._response: HTTPResponse | None = None
        self._events: Iterator[bytes] = iter(())
        self._cancelled = False
        self._tokens = self._characters = 0
        # Two events may each hold half of a character; half a character alone is none.
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def __next__(self) -> Piece:
        try:
            piece: Piece = self._asked(self._next)
        except BaseException:
            if self._response is not None:
                self._response.close()
            raise
        return piece

    def _next(self) -> Piece:
        if self._response is None:
            self._response = self._ask()
            self._events = _events(self._response)
        if self._cancelled:
            raise StopIteration
        return self._piece(parse_json(next(self._events).decode()))

    def _piece(self, event: Any) -> Piece:
        """Read one event; one with text counts as a token until the server says how many."""
        if event.get("error"):
            raise BaichuanError("The server says: {reason}", reason=_message(event))
        choices = event.get("choices")
        choice = choices[0] if choices else {}
        text = _text((choice.get("delta") or {}).get("content") or "", "content")
        text = self._decoder.decode(text.encode("utf-16-le", "surrogatepass"))
        self._characters += len(text)
        if self._characters > _MOST_TEXT:
            raise BaichuanError(
                "The server's answer is longer than {most:,} characters; the rest is not read.",
                most=_MOST_TEXT,
            )
        usage = event.get("usage")
        self._tokens = _count(usage, "completion_tokens") if usage else self._tokens + bool(text)
        return Piece(
            text,
            self._tokens,
            _count(usage, "prompt_tokens") if usage else None,
            _text(choice.get("finish_reason") or "", "finish_reason") or None,
        )

    def cancel(self) -> None:
        """Hang up after the event that is being read; the server then stops working."""
        self._cancelled = True


def _events(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the data of server-sent events until the last.

    Raises:
        ValueError: an event, or all of them, are larger than an answer can be.
    """
    line, total = bytearray(), 0
    while content := response.read1(1 << 16):
        total += len(content)
        *ended, rest = content.split(b"\n")
        for part in ended:
            line += part
            if line.startswith(b"data:"):
                data = bytes(line[len(b"data:") :]).strip()
                if data == b"[DONE]":
                    return
                yield data
            line.clear()
        line += rest
        if len(line) > _MOST_EVENT or total > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes, or {_MOST_EVENT:,} in a line")


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise what it raises; OSError where that takes too long.

    A server may send a byte now and then, which no timeout of a socket ends.
    """
    ended: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((ask(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value


def _whole(response: HTTPResponse | HTTPError) -> str:
    content = response.read(_MOST_JSON + 1)
    if len(content) > _MOST_JSON:
        raise ValueError(f"more than {_MOST_JSON:,} bytes")
    return content.decode()


def _reason(error: HTTPError) -> str:
    """Return what a server says of a request that it refuses."""
    try:
        return f"{error.code} {_message(parse_json(_within(_PATIENCE, lambda: _whole(error))))}"
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return f"{error.code} {error.reason}"
    finally:
        error.close()


def _message(body: Any) -> str:
    error = body["error"]
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _count(usage: Any, name: str) -> int:
    number = usage[name]
    if not isinstance(number, int) or not 0 <= number <= _MOST_BYTES:
        raise TypeError(f"{name} is no number of tokens")
    return number
