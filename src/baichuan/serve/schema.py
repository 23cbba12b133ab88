"""The API's bodies as OpenAI's clients write and read them. Knows pydantic only.

Types are strict, so that a wrong one is refused and never guessed. What a client sends beyond these
fields and does not change an answer (`user`, `metadata`, `store`, ...) is ignored; fields that
would change it and that this server does not have are listed, so that they are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
TokenIds = Annotated[list[int], Field(min_length=1)]
#: What only its absence, or a value without effect, is allowed for.
Unsupported = Field(None, description="Not supported; leave it out.", max_length=0)


class Body(BaseModel):
    """A request's body, or a part of one."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool = Field(False, description="End with a chunk that holds the usage.")


class SamplingBody(Body):
    """What chat and completion have in common; unset, the checkpoint's own values apply."""

    model: str | None = Field(None, description="Of `/v1/models`; the first if not given.")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens to generate.")
    temperature: float | None = Field(None, ge=0, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="0: all. Beyond OpenAI's API.")
    min_p: float | None = Field(None, ge=0, le=1, description="Beyond OpenAI's API.")
    repetition_penalty: float | None = Field(None, gt=0, description="Beyond OpenAI's API.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    n: int = Field(1, ge=1, le=16, description="Answers to each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = Unsupported


class TextPart(Body):
    """A part of a message; the model reads text only."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """The function of a tool call; its arguments are JSON in a string."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call of a tool that an assistant asks for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One message of a conversation."""

    role: Role
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Body):
    """A function that the model may call."""

    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema.")


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The function that must be called."""

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AnyFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema with a name."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")


class JsonSchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    AnyFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatBody(SamplingBody):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="Newer name of max_tokens.")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    functions: list[Any] | None = Unsupported


class CompletionBody(SamplingBody):
    """Body of `/v1/completions`."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=64)]
    )
    echo: bool = Field(False, description="Begin with the prompt, which must be text.")
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: str | None = Unsupported


class TokenizeBody(Body):
    """Body of `/tokenize`: a text, or the messages of a chat."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None


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
    """A chosen token and the likeliest in its place."""

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
