"""The bodies of answers as OpenAI's clients read them. Knows pydantic only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from baichuan.serve.schema import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Tokens of a request."""

    class PromptDetails(BaseModel):
        """Tokens of the prompt that were in the cache."""

        cached_tokens: int

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(BaseModel):
    """A likely token; `bytes` says what its text cannot where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A chosen token and the most likely ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat answer, or of a piece of one."""

    content: list[ChatLogprob]


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, or of a piece of one."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """An assistant's answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class Response(BaseModel):
    """What all answers begin with."""

    id: str
    created: int
    model: str


class ChatCompletion(Response):
    """Answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class DeltaToolCall(ToolCall):
    """A tool call in a stream: its place in the message, and the whole of it."""

    index: int


class Delta(BaseModel):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


class ChunkChoice(BaseModel):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Response):
    """One event of a stream from `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    """One continuation, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(Response):
    """Answer of `/v1/completions`, and one event of its stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """One entry of `/v1/models`; `max_model_len` is null while the model is being loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "baichuan"
    max_model_len: int | None


class ModelList(BaseModel):
    """Answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class Tokenized(BaseModel):
    """Answer of `/tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int


class Health(BaseModel):
    """Answer of `/health`."""

    status: Literal["ok"] = "ok"


class Error(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every answer that is an error."""

    error: Error


#: Line ends of Unicode that JSON may hold as they are, and at which clients wrongly cut events.
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def event(content: BaseModel) -> bytes:
    """Return a body as a server-sent event."""
    return f"data: {content.model_dump_json().translate(_LINE_ENDS)}\n\n".encode()
