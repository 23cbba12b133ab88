"""The chat prompt: messages in, token ids out. The only place that knows either published form.

    current    encode(system) + [195 | 196] + encode(content) ... + [196]            (August 2023)
    july2023   [195] + encode(content), [196] + encode(content) + [2] ... + [196]    (first release)

Ids are the truth. A role marker is an id, never text: what a person types goes through the
tokenizer's `encode_text`, which cannot give a marker back, so nobody can forge a turn. Method: the
prompts of both published releases, id for id. Knows no torch, no model and no sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypedDict, get_args

from baichuan.errors import PromptError, UsageError
from baichuan.language import translate

Role = Literal["system", "user", "assistant"]
Form = Literal["current", "july2023"]


class Message(TypedDict):
    """One turn of a conversation, or the system text before it."""

    role: Role
    content: str


class TextEncoder(Protocol):
    """What the prompt needs of a tokenizer."""

    def encode_text(self, text: str, markers: tuple[int, ...] = ...) -> list[int]:
        """Encode text as text: no special id and none of `markers` comes out."""
        ...


def input_room(model_max_length: int, max_new_tokens: int, form: Form = "current") -> int:
    """Say how many ids a prompt may have so that `max_new_tokens` more fit behind it.

    Raises:
        UsageError: the new tokens leave no room at all (the July 2023 form always keeps half).
    """
    room = model_max_length - max_new_tokens
    if form == "july2023":
        room = max(room, model_max_length // 2)
    if room < 1:
        raise UsageError(
            "max_tokens (max_new_tokens) {given} leaves no room for a prompt in a context of "
            "{context} tokens; ask for at most {most}.",
            given=max_new_tokens,
            context=model_max_length,
            most=model_max_length - 1,
        )
    return room


def encode_chat(
    tokenizer: TextEncoder,
    messages: Sequence[Message],
    *,
    user_token_id: int = 195,
    assistant_token_id: int = 196,
    eos_token_id: int = 2,
    max_input: int | None = None,
    add_generation_prompt: bool = True,
    form: Form = "current",
) -> list[int]:
    """Turn a conversation into the ids that the model was trained to continue.

    Each content is encoded on its own. A conversation that is too long loses its oldest rounds,
    whole (a round begins at each user message); the newest always stays, and if it is too long by
    itself its beginning goes, together with the system text.

    Args:
        tokenizer: encodes one content.
        messages: oldest first; `system` only as the first, and not in the July 2023 form.
        user_token_id: begins a user's turn.
        assistant_token_id: begins an assistant's turn.
        eos_token_id: ends an assistant's turn, July 2023 only.
        max_input: most ids wanted (see `input_room`); None keeps everything. The July 2023 form
            puts its last marker behind them, as published.
        add_generation_prompt: end with the assistant's marker. The current form does not when the
            last message is the assistant's: then the model continues it.
        form: which release's layout.

    Raises:
        PromptError: the messages form no conversation; says which message and why.
        UsageError: `max_input` or `form` is not allowed.
    """
    _check_arguments(max_input, form)
    _check_tokenizer(tokenizer)
    _check_messages(messages, form)
    markers = {"user": user_token_id, "assistant": assistant_token_id}
    never = (user_token_id, assistant_token_id)

    def turn(message: Message) -> list[int]:
        if message["role"] == "system":
            raise PromptError(
                "The July 2023 form has no system message; leave it out or use form='current'."
            )
        closing = form == "july2023" and message["role"] == "assistant"
        ids = tokenizer.encode_text(message["content"], never)
        return [markers[message["role"]], *ids, *([eos_token_id] if closing else [])]

    opening = [assistant_token_id] if add_generation_prompt else []
    if form == "july2023":
        rounds = (list(map(turn, r)) for r in _rounds_newest_first(messages))
        # Turns are encoded before the round is judged: a system message among them must be refused.
        started = (r for r in rounds if r[0][0] == user_token_id)
        return _last(_joined(_newest_that_fit(started, max_input)), max_input) + opening

    cut = 1 if messages[0]["role"] == "system" else 0
    head, turns = messages[:cut], messages[cut:]
    system = [i for message in head for i in tokenizer.encode_text(message["content"], never)]
    budget = None if max_input is None else max_input - len(system)
    kept = _newest_that_fit((map(turn, r) for r in _rounds_newest_first(turns)), budget)
    if messages[-1]["role"] == "assistant":
        opening = []
    return _last(system + _joined(kept) + opening, max_input)


def messages_that_fit(
    tokenizer: TextEncoder,
    messages: Sequence[Message],
    max_input: int,
    markers: tuple[int, int] = (195, 196),
) -> tuple[list[Message], int]:
    """Return the system text and the newest rounds that fit whole, and the count of their ids.

    `encode_chat` cuts nothing of them. The newest round of all is among them even where it is too
    long by itself; then the count is greater than `max_input`.
    """
    _check_arguments(max_input, "current")
    _check_messages(messages, "current")

    def turn(message: Message) -> list[int]:
        return [0, *tokenizer.encode_text(message["content"], markers)]

    cut = 1 if messages[0]["role"] == "system" else 0
    head, turns = list(messages[:cut]), messages[cut:]
    # A system text has no marker, but the answer has one.
    always = sum(len(turn(message)) - 1 for message in head)
    always += messages[-1]["role"] != "assistant"
    rounds = (list(map(turn, r)) for r in _rounds_newest_first(turns))
    kept = _newest_that_fit(rounds, max_input - always)
    return [*head, *turns[len(turns) - len(kept) :]], always + sum(map(len, kept))


def context_use(tokens: int, context: int) -> str:
    """Say how full the context is."""
    return translate(
        "context {tokens:,} of {context:,} ({share:.0%})",
        tokens=tokens,
        context=context,
        share=tokens / context,
    )


def assistant_mask(
    ids: Sequence[int], *, user_token_id: int = 195, assistant_token_id: int = 196
) -> list[int]:
    """Mark with 1 what assistants said, in ids that `encode_chat` made; markers are 0.

    Text cannot hold a marker, so the markers alone tell the turns apart.
    """
    mask, speaking = [], False
    for i in ids:
        speaking = i == assistant_token_id or (speaking and i != user_token_id)
        mask.append(int(speaking and i != assistant_token_id))
    return mask


def _rounds_newest_first(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Cut before each user message; what precedes the first one is the oldest round."""
    end = len(messages)
    for start in range(len(messages) - 1, -1, -1):
        if messages[start]["role"] == "user" or start == 0:
            yield messages[start:end]
            end = start


def _newest_that_fit(rounds: Iterable[Iterable[list[int]]], budget: int | None) -> list[list[int]]:
    """Join the turns of rounds, given newest first, until one more would exceed `budget` ids."""
    kept: list[list[int]] = []
    count = 0
    for turns in map(list, rounds):
        count += sum(map(len, turns))
        if budget is not None and kept and count > budget:
            break
        kept = turns + kept
        # Not one round more is read: as published, a system message in it then goes unnoticed.
        if budget is not None and count >= budget:
            break
    return kept


def _joined(turns: Iterable[list[int]]) -> list[int]:
    return [i for turn in turns for i in turn]


def _last(ids: list[int], count: int | None) -> list[int]:
    return ids if count is None else ids[-count:]


def _check_arguments(max_input: int | None, form: str) -> None:
    if form not in get_args(Form):
        raise UsageError(
            "form is {given!r}; allowed is one of {allowed}.",
            given=form,
            allowed=", ".join(get_args(Form)),
        )
    if max_input is not None and max_input < 1:
        raise UsageError(
            "max_input is {given}; it must be at least 1, or None for no limit.", given=max_input
        )


def _check_tokenizer(tokenizer: object) -> None:
    if not hasattr(tokenizer, "encode_text"):
        raise UsageError(
            "tokenizer is a {kind}, which would let typed text pass for role markers; chat needs "
            "a BaichuanTokenizer: baichuan.BaichuanTokenizer.from_pretrained(directory).",
            kind=type(tokenizer).__name__,
        )


def _check_messages(messages: Sequence[Message], form: Form) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            "messages is a {kind}; give a list such as {example}.",
            kind=type(messages).__name__,
            example='[{"role": "user", "content": "你好"}]',
        )
    if not messages and form == "current":
        raise PromptError("messages is empty; give at least one message.")
    for number, message in enumerate(messages):
        _check_message(number, message, form)


def _check_message(number: int, message: object, form: Form) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise PromptError(
            "messages[{number}] is {given!r:.80}; each needs the keys 'role' and 'content'.",
            number=number,
            given=message,
        )
    role, content = message["role"], message["content"]
    if role not in get_args(Role):
        raise PromptError(
            "messages[{number}] has the role {role!r}; roles are {allowed}.",
            number=number,
            role=role,
            allowed=", ".join(get_args(Role)),
        )
    if not isinstance(content, str):
        raise PromptError(
            "messages[{number}] has a content of type {kind}; it must be a str.",
            number=number,
            kind=type(content).__name__,
        )
    if role == "system" and number and form == "current":
        raise PromptError(
            "messages[{number}] is a system message; only the first may be one.", number=number
        )
