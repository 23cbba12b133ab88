"""Many requests at once at a server of OpenAI's API, by bare sockets, so that the client is cheap.

It shares the processors with the server that it measures, so it parses what it must and no more.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.serving import prompt


@dataclass(frozen=True)
class Ask:
    """A prompt of token ids and the most tokens of its answer, which is greedy."""

    prompt: list[int]
    tokens: int


@dataclass
class Answer:
    """What came back.

    Attributes:
        text: joined from the stream.
        tokens: of the answer, by the server's count.
        first_seconds: from sending the request to the first piece of text.
        seconds: to the end.
        error: what was said in place of an answer.
    """

    text: str = ""
    tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Run:
    """Answers in the order of the requests, and the seconds from the first to the last."""

    seconds: float
    answers: list[Answer] = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers."""
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def figures(self) -> dict[str, Any]:
        """Sum up, for JSON."""
        firsts = [answer.first_seconds for answer in self.answers]
        return {
            "requests": len(self.answers),
            "errors": sum(answer.error is not None for answer in self.answers),
            "answer_tokens": sum(answer.tokens for answer in self.answers),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "first_token_p50": statistics.median(firsts),
            "first_token_p95": statistics.quantiles(firsts, n=20, method="inclusive")[-1],
        }


def mixed(
    count: int, vocabulary: int, prompts: tuple[int, int], answers: tuple[int, int], seed: int = 0
) -> list[Ask]:
    """Make requests whose lengths go evenly, in a mixed order, from the least to the most."""

    def length(number: int, bounds: tuple[int, int], stride: int) -> int:
        least, most = bounds
        return least + number * stride % count * (most - least) // max(count - 1, 1)

    # Strides that share no factor with the count pass through every length once.
    return [
        Ask(prompt(length(i, prompts, 61), vocabulary, seed * count + i), length(i, answers, 37))
        for i in range(count)
    ]


def run(port: int, asks: Sequence[Ask], at_a_time: int) -> Run:
    """Send all requests to a server on this machine, each as soon as there is a place for it."""
    return asyncio.run(_run(port, asks, at_a_time))


async def _run(port: int, asks: Sequence[Ask], at_a_time: int) -> Run:
    answers = [Answer() for _ in asks]
    waiting = iter(zip(asks, answers, strict=True))

    async def work() -> None:
        for ask, answer in waiting:
            await _ask(port, ask, answer)

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_a_time)))
    return Run(time.perf_counter() - begin, answers)


async def _ask(port: int, ask: Ask, answer: Answer) -> None:
    body = {
        "prompt": ask.prompt,
        "max_tokens": ask.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.perf_counter()
    writer.write(_request("/v1/completions", json.dumps(body).encode()))
    try:
        async for event in _events(reader):
            _take(answer, event, time.perf_counter() - begin)
    except _RefusedError as error:
        answer.error = str(error)
    finally:
        writer.close()


def _take(answer: Answer, event: dict[str, Any], seconds: float) -> None:
    if "error" in event:
        answer.error = str(event["error"])
    for choice in event.get("choices", ()):
        if choice["text"] and not answer.text:
            answer.first_seconds = seconds
        answer.text += choice["text"]
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    answer.seconds = seconds


def _request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Read a response with events, sent in chunks (RFC 9112, 7.1)."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise _RefusedError((await reader.read()).decode("utf-8", "replace"))
    rest = b""
    while size := int(await reader.readline(), 16):
        *lines, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


class _RefusedError(Exception):
    """An answer with another status than 200."""
