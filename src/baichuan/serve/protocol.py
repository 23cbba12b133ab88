"""What travels between the HTTP process and the model process: plain data.

A call is sent with its number (`tuple[int, Call]`), `Replies` come back. Another engine serves the
same API by answering these calls. Knows no HTTP, no torch and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class WorkerOptions:
    """Which model, and how much at a time.

    Attributes:
        model: directory or hub name, or None for the demo.
        where: further arguments of `baichuan.load`.
        max_batch, max_queue: as `Runner` takes them.
        cache_tokens: as `Engine` takes it; None: what memory has room for once the model is loaded.
        speculate: as `Engine` takes it.
        draft: checkpoint of a draft model, or None.
    """

    model: str | None
    where: dict[str, Any]
    max_batch: int
    max_queue: int
    cache_tokens: int | None = None
    speculate: bool | None = None
    draft: str | None = None


#: One turn of a conversation: `role` (system, user or assistant) and `content`.
Message = dict[str, str]
#: A conversation, a text to continue, or token ids to continue.
Prompt = Sequence[Message] | str | Sequence[int]


@dataclass(frozen=True)
class Job:
    """Prompts to answer; the replies are `Piece`s until each answer has its last, or a `Failure`.

    Attributes:
        prompts: what to answer.
        n: answers to each prompt.
        settings: sampling parameters that replace the checkpoint's (names of `SamplingParams`).
        schema: JSON schema that the answers must follow.
    """

    prompts: Sequence[Prompt]
    n: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Cancel:
    """The call with this number is over for its sender, finished or not; no reply."""


@dataclass(frozen=True)
class Encode:
    """Turn a prompt into ids; the reply is `Encoded`."""

    prompt: Prompt


@dataclass(frozen=True)
class Count:
    """Ask for `Counts`."""


@dataclass(frozen=True)
class Ping:
    """Ask for a `Pong`."""


@dataclass(frozen=True)
class Close:
    """Drop what is under way and end the process."""


Call = Job | Cancel | Encode | Count | Ping | Close


@dataclass(frozen=True)
class Ready:
    """The model is loaded; comes first and unasked, with the number -1.

    Attributes:
        context_length: tokens that a prompt and its answer may have together.
        cache_tokens: positions that the caches of all requests may hold together.
        cache_bytes: what they take at most.
    """

    context_length: int
    cache_tokens: int
    cache_bytes: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and log-probability, and those of the likeliest in its place."""

    token: bytes
    logprob: float
    top: Sequence[tuple[bytes, float]]


@dataclass(frozen=True)
class Piece:
    """One step of one answer.

    Attributes:
        index: of the answer: number of the prompt times `n`, plus the number of the answer to it.
        text: may be empty.
        finish_reason: on the last piece of an answer.
        prompt_tokens, cached_tokens, completion_tokens: of this answer so far.
        logprob: if asked for.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids."""

    tokens: Sequence[int]


@dataclass(frozen=True)
class Counts:
    """What the engine does and has done: the fields of its `RunnerStats`."""

    values: Mapping[str, int]


@dataclass(frozen=True)
class Pong:
    """The model process is at work.

    Attributes:
        pass_seconds: since the forward pass that is being computed began; 0 if there is none.
    """

    pass_seconds: float


@dataclass(frozen=True)
class Failure:
    """A call that cannot be answered, or not to its end.

    Attributes:
        kind: whose fault it is: of what was asked (`too_long`: for this model's context), of the
            moment (`busy`: the queue is full; `unavailable`: no model at work), or ours.
        message: a sentence for the person who asked.
    """

    kind: Literal["invalid", "too_long", "busy", "unavailable", "internal"]
    message: str


Reply = Ready | Piece | Encoded | Counts | Pong | Failure

#: What the model process sends at a time: replies, each with the number of its call.
Replies = Sequence[tuple[int, Reply]]
