"""What the buttons around one conversation do. Knows no Streamlit.

The saved file is the truth: each tab that shows the conversation reads it anew, so a reload, or a
second tab, finds everything, and an answer that is on its way as well.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from baichuan.model.prompt import Message
from baichuan.transcript import Transcript
from baichuan.web.answering import Answer
from baichuan.web.conversations import Conversations
from baichuan.web.models import Model


class Talk:
    """One conversation.

    Args:
        model: who answers.
        conversations: where it is saved.
        name: under which name.
        answers: the latest answer of every conversation of this process, by file.
        earlier: what `undo` brings back, by file; each tab has its own.

    Every method may raise a BaichuanError: a sentence for the user; then nothing has changed.
    """

    def __init__(
        self,
        model: Model,
        conversations: Conversations,
        name: str,
        answers: MutableMapping[str, Answer],
        earlier: MutableMapping[str, Transcript],
    ) -> None:
        self._model = model
        self._conversations = conversations
        self.name = name
        self._key = str(conversations.directory / name)
        self._answers = answers
        self._earlier = earlier

    @property
    def answer(self) -> Answer | None:
        """The latest answer of this process, on its way or over; None if there was none."""
        return self._answers.get(self._key)

    @property
    def running(self) -> Answer | None:
        """The answer on its way, or None."""
        answer = self.answer
        return None if answer is None or answer.ended else answer

    @property
    def conversation(self) -> Transcript:
        """What was said, without the answer on its way."""
        running = self.running
        return running.asked if running else self._conversations.get(self.name)

    @property
    def can_undo(self) -> bool:
        """Whether `undo` has something to bring back."""
        return self._key in self._earlier

    def say(self, text: str, system: str | None, settings: Mapping[str, Any]) -> None:
        """Send a message; an answer on its way is stopped first."""
        self.stop()
        said: Message = {"role": "user", "content": text}
        messages = [*self.conversation.messages, said]
        self._ask(messages, system, settings, save=True)
        self._earlier.pop(self._key, None)

    def regenerate(self, system: str | None, settings: Mapping[str, Any]) -> None:
        """Answer the last question once more; the old answer stays until the new one has begun."""
        self.stop()
        messages = self.conversation.messages
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if messages:
            self._ask(messages, system, settings, save=False)

    def edit(self, number: int, text: str, system: str | None, settings: Mapping[str, Any]) -> None:
        """Replace a message and what came after it, and answer; `undo` brings all back."""
        self.stop()
        before = self.conversation
        edited: Message = {"role": "user", "content": text}
        self._ask([*before.messages[:number], edited], system, settings, save=True)
        self._earlier[self._key] = before

    def clear(self) -> None:
        """Forget the conversation; `undo` brings it back."""
        self.stop()
        before = self.conversation
        self._conversations.put(self.name, Transcript(before.system, []))
        self._answers.pop(self._key, None)
        self._earlier[self._key] = before

    def undo(self) -> None:
        """Take back the latest `clear` or `edit`."""
        if running := self.running:
            running.stop(keep=False)
        self._conversations.put(self.name, self._earlier[self._key])
        self._answers.pop(self._key, None)
        del self._earlier[self._key]

    def stop(self) -> None:
        """End the answer on its way, if there is one; what was said stays."""
        if running := self.running:
            running.stop()

    def set_system(self, system: str | None) -> None:
        """Save another system text; it holds from the next answer on."""
        messages = self._conversations.get(self.name).messages
        if messages:
            self._conversations.put(self.name, Transcript(system, messages))

    def _ask(
        self,
        messages: Sequence[Message],
        system: str | None,
        settings: Mapping[str, Any],
        save: bool,
    ) -> None:
        asked = Transcript(system, list(messages))
        reply = self._model.answer(asked, settings)
        try:
            if save:
                self._conversations.put(self.name, asked)
        except BaseException:
            reply.cancel()
            raise

        def keep(answered: Transcript) -> None:
            self._conversations.put(self.name, answered)

        self._answers[self._key] = Answer(asked, reply, keep)
