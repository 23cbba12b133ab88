"""Requests as careless, broken and hostile clients send them, and what each gets for it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHAT = "/v1/chat/completions"
#: Texts that look like the prompt's own markers.
_FORGED = ("<reserved_106>", "<reserved_107>", "</s>", "<s>", "<unk>", "\u202e</s>", "[INST]")
_ABSURD: tuple[dict[str, Any], ...] = (
    {"temperature": 1e300},
    {"temperature": 1e-300},
    {"temperature": -1},
    {"top_p": 1e-300},
    {"top_k": 10**18},
    {"min_p": 1.0, "temperature": 50.0},
    {"repetition_penalty": 1e-300},
    {"repetition_penalty": 1e300, "temperature": 1.0},
    {"presence_penalty": 2, "frequency_penalty": -2, "temperature": 2.0},
    {"max_tokens": 10**18},
    {"max_tokens": 0},
    {"n": 16, "max_tokens": 3, "temperature": 5.0},
    {"n": 10**9},
    {"seed": -(2**63)},
    {"seed": 2**200},
    {"stop": ["a"] * 16},
    {"stop": [""]},
    {"logprobs": True, "top_logprobs": 20, "max_tokens": 8},
    {"response_format": {"type": "json_object"}, "max_tokens": 20, "temperature": 30.0},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"$ref": "#"}},
        }
    },
    {"tools": [{"type": "function", "function": {"name": "x" * 64}}], "tool_choice": "required"},
)
_WRONG: tuple[dict[str, Any], ...] = (
    {"messages": "hello"},
    {"messages": [[]]},
    {"messages": [{"role": "king", "content": "x"}]},
    {"messages": [{"role": "user", "content": {"text": "x"}}]},
    {"max_tokens": "4"},
    {"stream": 1},
    {"stop": {"a": 1}},
    {"tools": "all"},
)
_BROKEN = (
    b"",
    b"{",
    b"null",
    b"[" * 5000,
    b'{"messages": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
)
_NO_UTF8 = (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', b"\xff\xfe\x00{", b"\x80")

Sent = tuple[str, int | None]


class Misuser:
    """One client that sends requests of every kind by chance.

    Args:
        port: of the server on this machine.
        seed: of the chances.
        max_body: bytes that the server takes.
        questions: for the messages.
    """

    def __init__(self, port: int, seed: int, max_body: int, questions: list[str]) -> None:
        self._port = port
        self._chance = random.Random(seed)
        self._max_body = max_body
        self._questions = questions
        self._kinds: dict[str, Callable[[], Any]] = {
            "right": self._right,
            "stream": lambda: self._right(stream=True),
            "leaves": self._leaves,
            "leaves a stream": lambda: self._leaves(stream=True),
            "leaves within the request": self._half,
            "reads slowly": self._slow,
            "forged markers": self._forged,
            "absurd parameters": lambda: self._post(self._body(**self._chance.choice(_ABSURD))),
            "wrong types": lambda: self._post(self._body(**self._chance.choice(_WRONG))),
            "no JSON": lambda: self._post(self._chance.choice(_BROKEN)),
            "no UTF-8": lambda: self._post(self._chance.choice(_NO_UTF8)),
            "oversized": lambda: self._post(b"x" * (max_body + self._chance.randint(1, max_body))),
            "too long a prompt": lambda: self._post(self._body(content="山峰 " * 2000)),
            "no HTTP": lambda: self._exchange(b"\x16\x03\x01 hello\r\n\r\n"),
        }

    async def send(self) -> Sent:
        """Send one request; give its kind and the status, if one came."""
        kind = self._chance.choice(list(self._kinds))
        status = None
        with suppress(OSError, asyncio.IncompleteReadError):
            status = await self._kinds[kind]()
        return kind, status

    def _body(self, content: str | None = None, **fields: Any) -> bytes:
        text = self._chance.choice(self._questions) if content is None else content
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    def _long(self, stream: bool) -> bytes:
        return self._body(stream=stream, max_tokens=600, temperature=9.0, seed=1)

    async def _right(self, stream: bool = False) -> int | None:
        most = self._chance.randint(1, 120)
        hot = {"temperature": self._chance.choice((0.0, 0.7, 1.5)), "max_tokens": most}
        return await self._post(self._body(stream=stream, **hot))

    async def _forged(self) -> int | None:
        parts = [self._chance.choice((*_FORGED, *self._questions)) for _ in range(4)]
        return await self._post(self._body(content="".join(parts), max_tokens=30))

    async def _leaves(self, stream: bool = False) -> int | None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._post(self._long(stream)), self._chance.random() * 0.6)
        return None

    async def _half(self) -> int | None:
        request = _request(self._body())
        return await self._exchange(request[: self._chance.randrange(len(request))], reads=False)

    async def _slow(self) -> int | None:
        """Read a few bytes now and then, for some seconds at most, then leave."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1024)
        try:
            writer.write(_request(self._long(stream=True)))
            status = await _status(reader)
            for _ in range(self._chance.randint(1, 15)):
                await reader.read(64)
                await asyncio.sleep(0.2)
            return status
        finally:
            writer.close()

    async def _post(self, body: bytes) -> int | None:
        return await self._exchange(_request(body))

    async def _exchange(self, raw: bytes, reads: bool = True) -> int | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(raw)
            if not reads:
                await writer.drain()
                return None
            status = await _status(reader)
            while await reader.read(1 << 16):
                pass
            return status
        finally:
            writer.close()


def _request(body: bytes) -> bytes:
    head = f"POST {_CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _status(reader: asyncio.StreamReader) -> int | None:
    line = await reader.readline()
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else None
