"""An answer on its way, read by a thread of its own: no page has to wait for it, or to be there.

Knows neither models nor pages, only a reply to read and a place to keep what it says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass

from baichuan.errors import BaichuanError
from baichuan.language import translate
from baichuan.model.prompt import Message
from baichuan.transcript import Transcript
from baichuan.web.models import Reply

#: Seconds after which an unfinished answer is saved again.
_SAVED_EVERY = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """How an answer came.

    Attributes:
        waited: seconds from the question to the first token, or until now.
        tokens: tokens of the answer so far.
        speed: tokens per second after the first; None before the second.
        prompt_tokens: tokens of the prompt, where they are known.
    """

    waited: float
    tokens: int
    speed: float | None
    prompt_tokens: int | None


class Answer:
    """Reads a reply until it ends or is stopped, and keeps what was said.

    Args:
        asked: the conversation that is answered.
        reply: the pieces.
        keep: saves the conversation with its answer; called now and then, and at the end, but not
            before something was said.

    Attributes:
        text: the answer so far.
        dropped: how many of the oldest messages did not fit into the context.
        error: a sentence that says what went wrong, or None.
        finish_reason: why the answer ended; None while it goes on, or if it was stopped.
    """

    def __init__(self, asked: Transcript, reply: Reply, keep: Callable[[Transcript], None]) -> None:
        self.asked = asked
        self.text = ""
        self.dropped = reply.dropped
        self.error: str | None = None
        self.finish_reason: str | None = None
        self._reply = reply
        self._keep = keep
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._began = self._saved = time.monotonic()
        self._first: float | None = None
        self._latest = self._began
        self._tokens = 0
        self._prompt_tokens: int | None = None
        # In this thread's language, should anything go wrong.
        read = copy_context().run
        threading.Thread(target=read, args=(self._read,), name="answer", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended.is_set()

    @property
    def figures(self) -> Figures:
        """How the answer has come so far."""
        with self._lock:
            first = self._first
            if first is None:
                waited = (self._latest if self.ended else time.monotonic()) - self._began
                return Figures(waited, 0, None, self._prompt_tokens)
            seconds, more = self._latest - first, self._tokens - 1
            speed = more / seconds if more > 0 and seconds > 0 else None
            return Figures(first - self._began, self._tokens, speed, self._prompt_tokens)

    def is_last(self, messages: Sequence[Message]) -> bool:
        """Say whether a conversation ends with what was asked and this answer, complete or not."""
        return self.ended and [*messages] == [*self.asked.messages, self._said()]

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; say whether it came."""
        return self._ended.wait(seconds)

    def stop(self, keep: bool = True) -> None:
        """End the answer at once; what was said is kept, unless `keep` is false."""
        with self._lock:
            if not self.ended:
                self._end(keep)
        self._reply.cancel()

    def _read(self) -> None:
        try:
            for text, tokens, prompt_tokens, finish_reason in self._reply:
                with self._lock:
                    if self.ended:
                        return
                    now = time.monotonic()
                    if tokens and self._first is None:
                        self._first = now
                    if tokens > self._tokens:
                        self._latest, self._tokens = now, tokens
                    self.text += text
                    self._prompt_tokens = prompt_tokens or self._prompt_tokens
                    self.finish_reason = finish_reason or self.finish_reason
                    if now - self._saved > _SAVED_EVERY:
                        self._save()
        except BaichuanError as error:
            self._fail(str(error))
        except Exception as error:
            _log.exception("an answer failed")
            self._fail(translate("The answer failed ({reason}).", reason=error))
        else:
            with self._lock:
                if not self.ended:
                    self._end(keep=True)

    def _fail(self, sentence: str) -> None:
        with self._lock:
            if not self.ended:
                self.error = sentence
                self._end(keep=True)

    def _end(self, keep: bool) -> None:
        """Save what was said; under the lock."""
        if keep:
            self._save()
        if self._first is None:
            self._latest = time.monotonic()
        self._ended.set()

    def _save(self) -> None:
        self._saved = time.monotonic()
        # A complete answer may be empty: the model ended at once.
        if not self.text and self.finish_reason is None:
            return
        try:
            self._keep(Transcript(self.asked.system, [*self.asked.messages, self._said()]))
        except Exception as error:
            self.error = translate("The answer is not saved ({reason}).", reason=error)

    def _said(self) -> Message:
        return {"role": "assistant", "content": self.text}
