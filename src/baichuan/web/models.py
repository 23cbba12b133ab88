"""Who answers: a model in this process, or a server that speaks OpenAI's protocol.

Both take a conversation and give a `Reply`: pieces of text with the number of tokens they took.
Knows no page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from baichuan.transcript import Transcript
from baichuan.web.options import Options

if TYPE_CHECKING:
    from baichuan.engine.runner import Request
    from baichuan.model.network import BaichuanForCausalLM

#: What can be set in the page; None leaves it to the model.
SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "max_tokens",
    "seed",
    "stop",
)
#: Full contexts that all caches may hold together, if memory has room: answers on their way, and
#: earlier turns kept for the next.
_CONTEXTS = 4


class Piece(NamedTuple):
    """Some of an answer.

    Attributes:
        text: what has come.
        tokens: tokens of the answer so far.
        prompt_tokens: tokens of the prompt, where it is known.
        finish_reason: None while the answer goes on; `"length"` says that it was cut.
    """

    text: str
    tokens: int
    prompt_tokens: int | None = None
    finish_reason: str | None = None


class Reply(Iterator[Piece], Protocol):
    """An answer on its way; reading it waits for its pieces.

    Attributes:
        dropped: how many of the oldest messages did not fit into the context.
    """

    dropped: int

    def cancel(self) -> None:
        """End it, from any thread."""
        ...


class Model(Protocol):
    """Who answers.

    Attributes:
        name: what the model really is, for people.
        is_demo: whether it is the small model that comes with the package.
        context: tokens that a conversation and its answer may have together, or None if unknown.
        defaults: for each of `SETTINGS` what holds if it is not set, or None where that is unknown.
    """

    name: str
    is_demo: bool
    context: int | None
    defaults: Mapping[str, Any]

    def answer(self, conversation: Transcript, settings: Mapping[str, Any]) -> Reply:
        """Begin to answer the last message.

        Args:
            conversation: system text and turns.
            settings: those of `SETTINGS` that replace the defaults.

        Raises:
            BaichuanError: the conversation or a setting cannot be.
        """
        ...


def open_model(options: Options) -> Model:
    """Load the model, or look at the server, that the options name.

    Raises:
        BaichuanError: it cannot be loaded, or the server does not answer.
    """
    if options.server:
        from baichuan.web.remote import RemoteModel

        return RemoteModel(options.server)
    return LocalModel(options)


class LocalModel:
    """A model in this process, with one engine for all conversations."""

    def __init__(self, options: Options) -> None:
        from baichuan.checkpoint.load import base_of_adapter, load, load_draft
        from baichuan.engine.runner import Runner
        from baichuan.model.budget import tokens_that_fit

        name = options.model
        if name is None and options.adapter is not None:
            name = base_of_adapter(Path(options.adapter))
        self.is_demo = name is None
        model, tokenizer = load(
            name,
            adapter=options.adapter,
            bits=options.bits,
            huge_pages=options.huge_pages,
            dtype=options.dtype,
            device=options.device,
        )
        draft = None
        if options.draft is not None:
            draft = load_draft(options.draft, tokenizer, device=options.device)
        self._model, self._tokenizer = model, tokenizer
        self.context: int | None = model.config.context_length
        room = tokens_that_fit(model, _CONTEXTS, draft)
        self._runner = Runner(
            model.engine(tokenizer, cache_tokens=room, speculate=options.speculate, draft=draft)
        )
        _, params = model.chat_request(tokenizer, [{"role": "user", "content": ""}])
        self.defaults: Mapping[str, Any] = {name: getattr(params, name) for name in SETTINGS}
        adapter = "" if options.adapter is None else f" + {_short(options.adapter)}"
        self.name = f"{_short(name or 'demo')}{adapter} · {_precision(model)}"

    def answer(self, conversation: Transcript, settings: Mapping[str, Any]) -> Reply:
        """Queue a request with the engine; see `Model.answer`."""
        prompt, params, dropped = self._model.fitted_chat_request(
            self._tokenizer, cast(Any, with_system(conversation)), **settings
        )
        return _LocalReply(self._runner.submit(prompt, params), dropped)


class _LocalReply(Iterator[Piece]):
    def __init__(self, request: Request, dropped: int) -> None:
        self._request = request
        self.dropped = dropped

    def __next__(self) -> Piece:
        step = next(self._request)
        usage = step.usage
        return Piece(step.text, usage.completion_tokens, usage.prompt_tokens, step.finish_reason)

    def cancel(self) -> None:
        self._request.cancel()


def _short(name: str) -> str:
    """Name a checkpoint as people do: by its directory, or by its name on the hub."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def _precision(model: BaichuanForCausalLM) -> str:
    from baichuan.quant.linear import QuantizedLinear

    quantized = (part for part in model.modules() if isinstance(part, QuantizedLinear))
    if layer := next(quantized, None):
        return f"int{layer.scheme.bits}"
    return str(model.dtype).removeprefix("torch.")


def with_system(conversation: Transcript) -> list[dict[str, Any]]:
    """Return the messages of a conversation, the system text first."""
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return [*system, *(dict(message) for message in conversation.messages)]
