"""A conversation: its messages, its cache, and the streamed answer to the next one.

Knows a model and a tokenizer; no terminal and no server. Both are doors to this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baichuan import transcript
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.steps import Step
from baichuan.errors import PromptError
from baichuan.language import translate
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.prompt import Message, input_room
from baichuan.model.tokenizer import BaichuanTokenizer


class Conversation:
    """Messages with one model, answered as a stream; each turn computes its new tokens only.

    An answer enters `messages`, with its question, when its stream ends: at its last token, at an
    error, or when the stream is closed early, with what was said so far. Where nothing was said,
    the messages stay as they were.

    Args:
        model, tokenizer: from `baichuan.load`.
        system: text put before the messages.
        speculate, draft: as `Engine` takes them.
        settings: sampling parameters that replace the checkpoint's.

    Attributes:
        messages: user and assistant turns, oldest first; change them freely between turns.
        system: text put before them, or None.
        settings: sampling parameters that replace the checkpoint's (names of `SamplingParams`).
        dropped: how many of the oldest messages did not fit into the context of the latest answer.
    """

    def __init__(
        self,
        model: BaichuanForCausalLM,
        tokenizer: BaichuanTokenizer,
        system: str | None = None,
        *,
        speculate: bool | None = None,
        draft: BaichuanForCausalLM | None = None,
        **settings: Any,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._engine = model.engine(tokenizer, speculate=speculate, draft=draft)
        self._cache = model.new_cache()
        self.system = system
        self.settings: dict[str, Any] = {}
        self.messages: list[Message] = []
        self.dropped = 0
        self.change(**settings)

    @property
    def parameters(self) -> SamplingParams:
        """The checkpoint's sampling parameters with `settings` put over them."""
        return SamplingParams.from_generation_config(self._model.generation_config, **self.settings)

    @property
    def context_length(self) -> int:
        """Tokens that the messages and the answer may have together."""
        return self._model.config.context_length

    def change(self, **settings: Any) -> None:
        """Replace sampling parameters from the next answer on.

        Raises:
            UsageError: a name that is no parameter, a value that is not allowed, or more
                `max_tokens` than the context holds; then nothing is changed.
        """
        new = {**self.settings, **settings}
        params = SamplingParams.from_generation_config(self._model.generation_config, **new)
        if "max_tokens" in settings:
            input_room(self.context_length, params.max_tokens)
        self.settings = new

    def reset(self, name: str) -> None:
        """Return one sampling parameter to the checkpoint's value."""
        self.settings.pop(name, None)

    def say(self, text: str) -> Iterator[Step]:
        """Send a message and stream the answer; stopping early keeps what was said so far.

        The oldest rounds are left out where they no longer fit; see `dropped`.

        Raises:
            ContextLengthError: when it is read, that the message itself does not fit.
        """
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def retry(self) -> Iterator[Step]:
        """Answer the last message once more; the old answer stays until the new one has begun.

        Raises:
            PromptError: nothing was said yet.
        """
        asked = list(self.messages)
        while asked and asked[-1]["role"] == "assistant":
            asked.pop()
        if not asked:
            raise PromptError("There is nothing to answer again: say something first.")
        return self._answer(asked)

    def undo(self) -> bool:
        """Take back the last message and its answer; say whether there was one."""
        roles = [message["role"] for message in self.messages]
        if "user" not in roles:
            return False
        del self.messages[len(roles) - 1 - roles[::-1].index("user") :]
        return True

    def clear(self) -> None:
        """Forget all messages; the system text stays."""
        self.messages.clear()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write system text and messages as JSON, whole or not at all; give the file's path.

        Raises:
            PromptError: the file cannot be written, or exists and holds something else.
        """
        target = Path(path).expanduser().resolve()
        if target.exists():
            transcript.read(target, translate("it is not overwritten; choose another name"))
        transcript.write(target, transcript.to_json(self.system, self.messages))
        return target

    def load(self, path: str | os.PathLike[str]) -> Path:
        """Read what `save` wrote in place of system text and messages; give the file's path.

        Raises:
            PromptError: the file cannot be read or holds no conversation; nothing is changed.
        """
        source = Path(path).expanduser()
        kept = translate("the present conversation is kept")
        self.system, self.messages = transcript.read(source, kept)
        return source

    def _answer(self, asked: list[Message]) -> Iterator[Step]:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        prompt, params, self.dropped = self._model.fitted_chat_request(
            self._tokenizer, [*system, *asked], **self.settings
        )
        steps = self._engine.generate(prompt, params, self._cache)
        text, complete = "", False
        try:
            for step in steps:
                text, complete = text + step.text, step.finish_reason is not None
                yield step
        finally:
            # A complete answer may be empty: the model ended at once.
            if text or complete:
                self.messages = [*asked, {"role": "assistant", "content": text}]
            steps.close()  # type: ignore[attr-defined]
