"""A running OpenAI-compatible server as the scorer: it must give log-probabilities.

Knows HTTP by the `openai` package; the server has its own tokenizer, so prompts are not shortened.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from baichuan.errors import BaichuanError, UsageError
from baichuan.evaluate.data import LETTERS
from baichuan.evaluate.prompts import Count, Prompt
from baichuan.evaluate.scorers import Scores

if TYPE_CHECKING:
    from openai import OpenAI

#: What a letter scores that is not among the likeliest tokens, as in the official script for GPT-3.
MISSING = -100.0
#: Tokens to ask for: 20 is the most that OpenAI's API gives, 5 its older completions.
_LIKELIEST = 20
_AT_ONCE = 8
#: What servers state anew at each start or request.
_VOLATILE = ("created", "permission")
#: What reading an answer of another shape raises, for the openai package checks no types.
_NO_ANSWER = (LookupError, TypeError, AttributeError, ValueError, RecursionError, OverflowError)


class ServerScorer:
    """Asks for one token and reads the letters' log-probabilities among the likeliest.

    Args:
        address: such as `http://127.0.0.1:8000/v1`.
        model: the name that the server knows the model by; None takes its first.
        key: for the server; most need none.

    Attributes:
        served: what the server says of the model, without times.
    """

    def __init__(self, address: str, model: str | None = None, key: str | None = None) -> None:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError as error:
            raise UsageError(
                "--server speaks through the openai package, which is not installed. Install it "
                "with: pip install 'baichuan-lm[eval]'"
            ) from error
        http = DefaultHttpxClient(follow_redirects=False)
        weakref.finalize(self, http.close)
        self._client: OpenAI = OpenAI(
            base_url=address, api_key=(key or "").strip() or "none", http_client=http
        )
        self._address = address
        self.count: Count | None = None
        self.served = self._description(model)
        self.model = str(self.served["id"])

    def scores(self, prompts: Sequence[Prompt], done: Container[int]) -> Iterator[Scores]:
        """Score; see `scorers.Scorer`. Several requests are under way at once."""
        waiting = [index for index in range(len(prompts)) if index not in done]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for first in range(0, len(waiting), _AT_ONCE):
                batch = waiting[first : first + _AT_ONCE]
                fours = threads.map(self._four, [prompts[index] for index in batch])
                yield dict(zip(batch, fours, strict=True))

    def _description(self, model: str | None) -> dict[str, Any]:
        """Return what the server says of a model; of its first one without a name."""
        from openai import NotFoundError

        try:
            found = self._asked(lambda: _entries(self._client.models.list()))
        except BaichuanError as error:  # some servers have no list
            if model is None or not isinstance(error.__cause__, NotFoundError):
                raise
            found = []
        models = found
        if model is not None:
            models = [entry for entry in models if entry["id"] == model] or [{"id": model}]
        if not models:
            raise UsageError("The server at {address} has no model.", address=self._address)
        return {name: value for name, value in models[0].items() if name not in _VOLATILE}

    def _four(self, prompt: Prompt) -> tuple[float, ...]:
        likeliest = self._asked(lambda: self._likeliest(prompt))
        if not likeliest:
            raise BaichuanError(
                "The server at {address} gives no log-probabilities, which the scores are made of. "
                "Evaluate the checkpoint itself, or a server that gives them.",
                address=self._address,
            )
        found = dict.fromkeys(LETTERS, MISSING)
        for token, score in likeliest:
            # Servers write a word's beginning as a space or as sentencepiece does.
            letter = token.strip(" ▁")
            if letter in found:
                found[letter] = max(found[letter], score)
        return tuple(found.values())

    def _likeliest(self, prompt: Prompt) -> list[tuple[str, float]]:
        """Give tokens and their log-probabilities."""
        content = prompt.content
        if isinstance(content, str):
            answer = self._client.completions.create(
                model=self.model, prompt=content, max_tokens=1, temperature=0, logprobs=_LIKELIEST
            )
            found = answer.choices[0].logprobs
            top = found.top_logprobs if found is not None else None
            return _scores(top[0].items()) if top else []
        chat = self._client.chat.completions.create(
            model=self.model,
            messages=cast(Any, content),
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=_LIKELIEST,
        )
        tokens = chat.choices[0].logprobs
        first = tokens.content[0] if tokens is not None and tokens.content else None
        return [] if first is None else _scores((t.token, t.logprob) for t in first.top_logprobs)

    def _asked(self, question: Any) -> Any:
        """Ask the server, and say what went wrong in a sentence."""
        from openai import OpenAIError

        try:
            return question()
        except OpenAIError as error:
            raise BaichuanError(
                "The server at {address} did not answer: {reason}",
                address=self._address,
                reason=str(error).partition("\n")[0],
            ) from error
        except _NO_ANSWER as error:
            raise BaichuanError(
                "The server at {address} did not answer as OpenAI's protocol says ({reason}).",
                address=self._address,
                reason=f"{type(error).__name__}: {error}",
            ) from error


def _entries(found: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the entries of a list of models, each with the name of one."""
    entries = list(found)
    if not all(isinstance(entry.id, str) for entry in entries):
        raise TypeError("the id of a model is no text")
    return [entry.to_dict() for entry in entries]


def _scores(found: Iterable[tuple[Any, Any]]) -> list[tuple[str, float]]:
    """Return tokens and their log-probabilities, which a server may send as anything.

    Raises:
        TypeError: one of them is of another type.
        ValueError: a log-probability is NaN.
    """
    checked = []
    for token, score in found:
        if not isinstance(token, str) or not isinstance(score, int | float):
            raise TypeError("a log-probability is no number")
        if math.isnan(score):
            raise ValueError("a log-probability is NaN")
        checked.append((token, float(score)))
    return checked
