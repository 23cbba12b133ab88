"""The bodies of requests as OpenAI's clients write them. Knows pydantic only.

Types are strict, so that a wrong one is refused and never converted. A null is absent. A field that
there is not is refused, for it might change the answer; those that change none (`user`, `metadata`,
`store`, ...) are listed, and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema

Role = Literal["system", "developer", "user", "assistant", "tool"]
StopText = Annotated[str, Field(max_length=1000)]
TokenIds = Annotated[list[int], Field(min_length=1)]
#: What only its absence, or a value without effect, is allowed for.
Unsupported = Field(None, description="Not supported; leave it out.", max_length=0)
Neutral = Field(None, description="Not supported with another value; leave it out.")


class Body(BaseModel):
    """A request's body, or a part of one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_what_says_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None and name not in cls.ignored
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if handler.mode == "validation":
            fields = schema.get("properties", {})
            for name in fields.keys() - schema.get("required", ()):
                _allow_null(fields, name)
            for name in sorted(cls.ignored):
                fields[name] = {"description": "Changes no answer; ignored."}
        return schema


def _allow_null(fields: dict[str, Any], name: str) -> None:
    about = {key: fields[name].pop(key) for key in ("title", "description") if key in fields[name]}
    kinds = fields[name].get("anyOf", [fields[name]])
    if {"type": "null"} not in kinds:
        fields[name] = {"anyOf": [*kinds, {"type": "null"}]}
    fields[name].update(about)


class StreamOptions(Body):
    """What a stream tells beside the text."""

    ignored = frozenset({"include_obfuscation", "continuous_usage_stats"})

    include_usage: bool = Field(False, description="End with a chunk that holds the usage.")


class SamplingBody(Body):
    """What chat and completion have in common; unset, the checkpoint's own values apply."""

    ignored = frozenset(
        {
            # OpenAI's. There is one tool call at most, so parallel ones change nothing.
            *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
            *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
            # vLLM's and llama.cpp's. The tokenizer adds no special tokens to a prompt.
            *("request_id", "priority", "cache_prompt", "id_slot", "timings_per_token"),
            *("add_special_tokens", "spaces_between_special_tokens", "include_reasoning"),
        }
    )

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
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = Field(
        None, description="Where the answer ends; an empty string is none."
    )
    n: int = Field(1, ge=1, le=16, description="Answers to each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = Unsupported
    bad_words: list[str] | None = Unsupported
    stop_token_ids: list[int] | None = Unsupported
    best_of: Literal[1] | None = Neutral
    ignore_eos: Literal[False] | None = Neutral
    include_stop_str_in_output: Literal[False] | None = Neutral
    min_tokens: Literal[0] | None = Neutral
    skip_special_tokens: Literal[True] | None = Neutral
    use_beam_search: Literal[False] | None = Neutral


class Part(Body):
    """A part of a message; clients send back what they were given, with fields of their own."""

    model_config = ConfigDict(extra="ignore")


class TextPart(Part):
    """A part of a message; the model reads text only."""

    type: Literal["text"]
    text: str


class CalledFunction(Part):
    """The function of a tool call; its arguments are JSON in a string."""

    name: str
    arguments: str


class ToolCall(Part):
    """A call of a tool that an assistant asks for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Part):
    """One message of a conversation."""

    role: Role
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    audio: None = Unsupported
    function_call: None = Unsupported

    @property
    def text(self) -> str:
        """The content as one text, a line for each part."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class Function(Body):
    """A function that the model may call."""

    ignored = frozenset({"strict"})  # a demanded call always follows its schema

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
    """A JSON schema with a name; it is always enforced."""

    ignored = frozenset({"strict", "description"})

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
    function_call: Literal["none", "auto"] | None = Neutral
    documents: list[Any] | None = Unsupported
    chat_template_kwargs: dict[str, Any] | None = Unsupported
    modalities: list[Literal["text"]] | None = Neutral
    reasoning_effort: Literal["none"] | None = Neutral
    verbosity: Literal["medium"] | None = Neutral
    echo: Literal[False] | None = Neutral
    add_generation_prompt: bool | None = Field(
        None, description="What the last message says already: false if it is the assistant's."
    )
    continue_final_message: bool | None = Field(
        None, description="What the last message says already: true if it is the assistant's."
    )


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
    response_format: AnyFormat | None = Neutral


class TokenizeBody(Body):
    """Body of `/tokenize`: a text, or the messages of a chat."""

    ignored = frozenset({"model", "add_special_tokens"})

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
