"""A conversation: its messages, its cache, and the streamed answer to the next one.

Knows a model and a tokenizer; no terminal and no server. Both are doors to this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baichuan.engine.loop import Step
from baichuan.errors import PromptError
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.prompt import Message
from baichuan.model.tokenizer import BaichuanTokenizer


class Conversation:
    """Messages with one model, answered as a stream; each turn computes its new tokens only.

    Attributes:
        messages: user and assistant turns, oldest first; change them freely between turns.
        system: text put before them, or None.
        settings: sampling parameters that replace the checkpoint's (names of `SamplingParams`).
    """

    def __init__(
        self,
        model: BaichuanForCausalLM,
        tokenizer: BaichuanTokenizer,
        system: str | None = None,
        **settings: Any,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._cache = model.new_cache()
        self.system = system
        self.settings = settings
        self.messages: list[Message] = []

    def say(self, text: str) -> Iterator[Step]:
        """Send a message and stream the answer; stopping early keeps what was said so far."""
        self.messages.append({"role": "user", "content": text})
        yield from self._answer()

    def retry(self) -> Iterator[Step]:
        """Answer the last message once more.

        Raises:
            PromptError: nothing was said yet.
        """
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages:
            raise PromptError("There is nothing to answer again: say something first.")
        yield from self._answer()

    def undo(self) -> bool:
        """Take back the last message and its answer; say whether there was one."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        return bool(self.messages)

    def clear(self) -> None:
        """Forget all messages; the system text stays."""
        self.messages.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write system text and messages as JSON, whole or not at all."""
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        content = {"system": self.system, "messages": self.messages}
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
        partial.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what `save` wrote.

        Raises:
            PromptError: the file cannot be read or holds no conversation.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            system, messages = content["system"], content["messages"]
            turns = [{"role": m["role"], "content": m["content"]} for m in messages]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PromptError(f"{path} is no saved conversation ({error!r}).") from error
        self.system, self.messages = system, turns  # type: ignore[assignment]

    def _answer(self) -> Iterator[Step]:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        steps = self._model.chat_steps(
            self._tokenizer, [*system, *self.messages], cache=self._cache, **self.settings
        )
        text = ""
        try:
            for step in steps:
                text += step.text
                yield step
        finally:
            steps.close()  # type: ignore[attr-defined]
            if text:
                self.messages.append({"role": "assistant", "content": text})
