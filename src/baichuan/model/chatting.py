"""`model.chat()` as the original README wrote it: a fold over the engine's steps.

Knows the prompt, the engine and a tokenizer; keeps nothing between calls. Whoever wants a
conversation that prefills only its new tokens passes a cache (chat.py does).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from copy import copy
from typing import Any, Literal, NamedTuple, cast, overload

from baichuan.engine.cache import DecoderModel, SequenceCache
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.steps import Step
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.prompt import Message, encode_chat, input_room, messages_that_fit
from baichuan.model.tokenizer import BaichuanTokenizer

#: Parameters of transformers' `generate` that `SamplingParams` calls otherwise.
_OF_GENERATE = {"max_new_tokens", "do_sample"}


class ChatMixin:
    """Adds `chat` to a network that has a configuration and a generation configuration."""

    config: BaichuanConfig
    generation_config: Any

    @overload
    def chat(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Sequence[Message],
        stream: Literal[False] = False,
        generation_config: Any = None,
        cache: SequenceCache | None = None,
        speculate: bool | None = None,
        draft: DecoderModel | None = None,
        **sampling: Any,
    ) -> str: ...

    @overload
    def chat(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Sequence[Message],
        stream: Literal[True],
        generation_config: Any = None,
        cache: SequenceCache | None = None,
        speculate: bool | None = None,
        draft: DecoderModel | None = None,
        **sampling: Any,
    ) -> Iterator[str]: ...

    @overload
    def chat(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Sequence[Message],
        stream: bool,
        generation_config: Any = None,
        cache: SequenceCache | None = None,
        speculate: bool | None = None,
        draft: DecoderModel | None = None,
        **sampling: Any,
    ) -> str | Iterator[str]: ...

    def chat(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Sequence[Message],
        stream: bool = False,
        generation_config: Any = None,
        cache: SequenceCache | None = None,
        speculate: bool | None = None,
        draft: DecoderModel | None = None,
        **sampling: Any,
    ) -> str | Iterator[str]:
        """Answer the last message.

        Args:
            tokenizer: the checkpoint's tokenizer.
            messages: `{"role": "system" | "user" | "assistant", "content": str}`, oldest first; the
                oldest rounds are dropped, whole, when they no longer fit.
            stream: return a generator over the growing answer (the whole text so far, each time).
                Until it has ended, or its `close()` was called, nobody else may use `cache`.
            generation_config: what it sets is used instead of what `self.generation_config` says.
            cache: from `self.new_cache()`; keep it over the turns of one conversation, so that
                each turn computes its new tokens only.
            speculate, draft: as `Engine` takes them. The draft reads the messages anew at each
                call; a `Conversation` spares it that.
            sampling: single parameters instead of those settings, as `SamplingParams` names them
                (`temperature`, `top_k`, `top_p`, `repetition_penalty`, `max_tokens`, `seed`,
                `stop`, ...) or as `generate` does (`max_new_tokens`, `do_sample`).

        Raises:
            PromptError: the messages form no conversation.
            UsageError: a sampling parameter is not allowed, the draft cannot be used, or the cache
                is another model's or in use by another answer.
        """
        steps = self.chat_steps(
            tokenizer,
            messages,
            generation_config,
            cache,
            speculate=speculate,
            draft=draft,
            **sampling,
        )
        if stream:
            return _growing(steps)
        return "".join(step.text for step in steps)

    def chat_steps(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Sequence[Message],
        generation_config: Any = None,
        cache: SequenceCache | None = None,
        *,
        speculate: bool | None = None,
        draft: DecoderModel | None = None,
        **changes: Any,
    ) -> Iterator[Step]:
        """Give the engine's steps of an answer; `changes` replace single sampling parameters."""
        prompt, params = self.chat_request(tokenizer, messages, generation_config, **changes)
        settings = _completed(generation_config, self.generation_config, self.config)
        engine = self.engine(
            tokenizer, turn_ids=role_ids(settings), speculate=speculate, draft=draft
        )
        return engine.generate(prompt, params, cache)

    def engine(self, tokenizer: BaichuanTokenizer, **options: Any) -> Engine:
        """Return an engine for several answers, whose text has no special tokens.

        Args:
            tokenizer: the checkpoint's.
            options: further arguments of `Engine`, in place of those that the checkpoint gives.
        """
        own = {
            "turn_ids": role_ids(self.generation_config),
            "banned_ids": tokenizer.unknown_ids(self.config.vocab_size),
        }
        return Engine(cast(DecoderModel, self), tokenizer.decode_text, **{**own, **options})

    def chat_request(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Sequence[Message],
        generation_config: Any = None,
        **changes: Any,
    ) -> tuple[list[int], SamplingParams]:
        """Give what an engine needs to answer: the prompt's ids and the sampling parameters.

        For whoever shares one engine among conversations; the arguments are those of `chat_steps`.
        """
        settings = _completed(generation_config, self.generation_config, self.config)
        changes = {name: value for name, value in changes.items() if value is not None}
        for name in _OF_GENERATE & changes.keys():
            setattr(settings, name, changes.pop(name))
        if settings.max_new_tokens is None:  # nobody asked: half the context at most
            changes = {"max_tokens": _default_answer(self.config.context_length), **changes}
        params = SamplingParams.from_generation_config(settings, **changes)
        user, assistant = role_ids(settings)
        prompt = encode_chat(
            tokenizer,
            messages,
            user_token_id=user,
            assistant_token_id=assistant,
            max_input=input_room(self.config.context_length, params.max_tokens),
        )
        return prompt, params

    def fitted_chat_request(
        self, tokenizer: BaichuanTokenizer, messages: Sequence[Message], **changes: Any
    ) -> ChatRequest:
        """Return what `chat_request` does, but cut no message; for conversations with a person.

        The oldest rounds that do not fit are left out, and counted. A newest message that is too
        long beside the longest answer shortens that answer, unless `changes` name `max_tokens`.

        Raises:
            ContextLengthError: the newest message and its answer are longer than the context.
        """
        _, params = self.chat_request(tokenizer, messages[-1:], **changes)
        context = self.config.context_length
        room = input_room(context, params.max_tokens)
        kept, count = messages_that_fit(tokenizer, messages, room)
        if count > room:
            params = params.within(context, count, changes.get("max_tokens"))
            changes = {**changes, "max_tokens": params.max_tokens}
        prompt, params = self.chat_request(tokenizer, kept, **changes)
        return ChatRequest(prompt, params, len(messages) - len(kept))


class ChatRequest(NamedTuple):
    """What an engine needs to answer a conversation.

    Attributes:
        prompt: token ids.
        params: sampling parameters.
        dropped: how many of the oldest messages, not counting a system text, are left out.
    """

    prompt: list[int]
    params: SamplingParams
    dropped: int


def _growing(steps: Iterator[Step]) -> Iterator[str]:
    text = ""
    with closing(cast("Generator[Step, None, None]", steps)):
        for step in steps:
            text += step.text
            yield text


def _completed(given: Any, own: Any, config: BaichuanConfig) -> Any:
    """Fill what a generation configuration leaves open from the model's, as `generate` does."""
    settings = copy(own if given is None else given)
    for name, value in vars(own).items():
        if getattr(settings, name, None) is None:
            setattr(settings, name, value)
    if settings.eos_token_id is None:
        settings.eos_token_id = config.eos_token_id
    return settings


def _default_answer(context_length: int) -> int:
    return max(1, min(SamplingParams().max_tokens, context_length // 2))


def role_ids(settings: Any) -> tuple[int, int]:
    """Return the ids that begin a user's and an assistant's turn, else those of the 13B."""
    user = getattr(settings, "user_token_id", None)
    assistant = getattr(settings, "assistant_token_id", None)
    return 195 if user is None else int(user), 196 if assistant is None else int(assistant)
