"""From the pieces of answers to OpenAI's responses, whole or as a stream of chunks.

Knows the API's bodies and `protocol.py`; no route and no engine.
"""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from baichuan.serve.protocol import Piece, TokenLogprob
from baichuan.serve.responses import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    DeltaToolCall,
    FinishReason,
    TopLogprob,
    Usage,
)
from baichuan.serve.schema import Tool, ToolCall
from baichuan.serve.tools import may_be_call, parse_call

Pieces = AsyncIterator[Piece]


def heading(kind: Literal["chatcmpl", "cmpl"], model: str) -> dict[str, Any]:
    """Give what all parts of one response have in common."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


class Tally:
    """Counts the tokens of a request's answers; `n` of them share each prompt."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._latest: dict[int, Piece] = {}

    def add(self, piece: Piece) -> None:
        """Take note of a piece."""
        self._latest[piece.index] = piece

    @property
    def usage(self) -> Usage:
        """What the request has cost so far; a shared prompt counts once."""
        first = [piece for index, piece in self._latest.items() if index % self._n == 0]
        prompt = sum(piece.prompt_tokens for piece in first)
        completion = sum(piece.completion_tokens for piece in self._latest.values())
        cached = sum(piece.cached_tokens for piece in first)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=Usage.PromptDetails(cached_tokens=cached),
        )


async def _gathered(pieces: Pieces, tally: Tally) -> list[list[Piece]]:
    """Wait for all answers; give the pieces of each."""
    answers: defaultdict[int, list[Piece]] = defaultdict(list)
    async for piece in pieces:
        tally.add(piece)
        answers[piece.index].append(piece)
    return [answers[index] for index in sorted(answers)]


async def chat_completion(
    head: dict[str, Any], pieces: Pieces, tally: Tally, tools: Sequence[Tool]
) -> ChatCompletion:
    """Make the response of a chat."""
    choices = []
    for index, answer in enumerate(await _gathered(pieces, tally)):
        text, call, reason = _said(answer, tools)
        message = AnswerMessage(content=text, tool_calls=None if call is None else [call])
        logprobs = _chat_logprobs(answer)
        choices.append(
            ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=reason)
        )
    return ChatCompletion(**head, choices=choices, usage=tally.usage)


async def chat_chunks(
    head: dict[str, Any], pieces: Pieces, tally: Tally, tools: Sequence[Tool]
) -> AsyncIterator[ChatCompletionChunk]:
    """Make the chunks of a chat. What may become a tool call is held back until that is certain."""
    begun: set[int] = set()
    held: defaultdict[int, list[Piece]] = defaultdict(list)
    decided: set[int] = set()

    def chunk(index: int, delta: Delta, **rest: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(**head, choices=[ChunkChoice(index=index, delta=delta, **rest)])

    async for piece in pieces:
        tally.add(piece)
        index = piece.index
        if index not in begun:
            begun.add(index)
            yield chunk(index, Delta(role="assistant", content=""))
        held[index].append(piece)
        undecided = tools if index not in decided else ()  # those that it may yet call
        if undecided and piece.finish_reason is None and may_be_call(_text(held[index])):
            continue
        decided.add(index)
        part = held.pop(index)
        text, call, reason = _said(part, undecided)
        logprobs = _chat_logprobs(part)
        if call is not None:
            delta = Delta(tool_calls=[DeltaToolCall(index=0, **call.model_dump())])
            yield chunk(index, delta, logprobs=logprobs)
        elif text or logprobs:
            yield chunk(index, Delta(content=text), logprobs=logprobs)
        if piece.finish_reason is not None:
            yield chunk(index, Delta(), finish_reason=reason)


def _said(
    answer: Sequence[Piece], tools: Sequence[Tool]
) -> tuple[str | None, ToolCall | None, FinishReason]:
    """Give text, or tool call, and the reason for the end (meaningless in the middle)."""
    text, reason = _text(answer), answer[-1].finish_reason
    call = parse_call(text, tools) if tools and reason == "stop" and may_be_call(text) else None
    if call is not None:
        return None, call, "tool_calls"
    return text, None, reason or "stop"


def _text(answer: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in answer)


async def completion(
    head: dict[str, Any], pieces: Pieces, tally: Tally, echoes: Sequence[str]
) -> Completion:
    """Make the response of a completion.

    Args:
        echoes: what each answer's text begins with.
    """
    choices = [
        CompletionChoice(
            index=index,
            text=echoes[index] + _text(answer),
            logprobs=_completion_logprobs(answer, _Offsets(len(echoes[index]))),
            finish_reason=answer[-1].finish_reason,
        )
        for index, answer in enumerate(await _gathered(pieces, tally))
    ]
    return Completion(**head, choices=choices, usage=tally.usage)


async def completion_chunks(
    head: dict[str, Any], pieces: Pieces, tally: Tally, echoes: Sequence[str]
) -> AsyncIterator[Completion]:
    """Make the chunks of a completion, one for each piece that says something."""
    ahead = dict(enumerate(echoes))
    offsets = {index: _Offsets(len(echo)) for index, echo in ahead.items()}
    async for piece in pieces:
        tally.add(piece)
        index = piece.index
        text = ahead.pop(index, "") + piece.text
        logprobs = _completion_logprobs([piece], offsets[index])
        if text or logprobs or piece.finish_reason:
            choice = CompletionChoice(
                index=index, text=text, logprobs=logprobs, finish_reason=piece.finish_reason
            )
            yield Completion(**head, choices=[choice])


def _logprobs(answer: Sequence[Piece]) -> list[TokenLogprob]:
    return [piece.logprob for piece in answer if piece.logprob is not None]


def _chat_logprobs(answer: Sequence[Piece]) -> ChatLogprobs | None:
    content = [
        ChatLogprob(
            **_top_logprob(found.token, found.logprob).model_dump(),
            top_logprobs=[_top_logprob(*pair) for pair in found.top],
        )
        for found in _logprobs(answer)
    ]
    return ChatLogprobs(content=content) if content else None


def _top_logprob(token: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=token.decode(errors="replace"), logprob=logprob, bytes=list(token))


class _Offsets:
    """Counts the characters before each token of a text; a part of one is where it begins."""

    def __init__(self, start: int) -> None:
        self._next = start
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def of(self, token: bytes) -> int:
        """Return the offset of the next token."""
        offset = self._next
        self._next += len(self._decoder.decode(token))
        return offset


def _completion_logprobs(answer: Sequence[Piece], offsets: _Offsets) -> CompletionLogprobs | None:
    found = _logprobs(answer)
    if not found:
        return None
    return CompletionLogprobs(
        tokens=[_name(one.token) for one in found],
        token_logprobs=[one.logprob for one in found],
        top_logprobs=[{_name(token): value for token, value in one.top} for one in found],
        text_offset=[offsets.of(one.token) for one in found],
    )


def _name(token: bytes) -> str:
    """Give a token's text, or where it is a part of a character its bytes, as OpenAI writes them.

    Texts are keys here, so two tokens must not have the same.
    """
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
