"""From logits to the next token: parameters, and a pure function of them. Knows no model, no text.

The order of the steps is that of transformers' `generate` (penalties, constraint, temperature,
top-k, top-p, min-p), so the same values mean the same distribution here and there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from baichuan.errors import ContextLengthError, NumericalError, UsageError
from baichuan.language import phrase, translate

_LEAST_TEMPERATURE = 0.000001
#: Beyond it, divided logits may leave float32's range, and no probabilities are left.
_LEAST_PENALTY = 0.0001
_SEEDS = 2**63
#: Largest presence and frequency penalty, as in the API that they come from.
_MOST_PENALTY = 2.0
_REAL = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class Constraint(Protocol):
    """What one answer may say, token for token: a grammar, for example.

    One object belongs to one sequence. A method that raises ends that request with its error; the
    others of the batch go on.
    """

    def allowed(self) -> Tensor:
        """Give the tokens that may come next, bool [vocabulary] on the CPU; at least one."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen among them."""
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token (greedy). Values from 0 to
            0.000001 are refused: float32 cannot divide by them.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; 1 keeps all.
        min_p: drop tokens below this share of the likeliest one's probability; 0 keeps all.
        repetition_penalty: logits of tokens already in prompt or answer are divided by this if
            positive, multiplied if negative (Keskar et al. 2019, arXiv 1909.05858); 1 is off. From
            0.0001 to 10000.
        presence_penalty: is subtracted from the logits of tokens that the answer has; 0 is off.
        frequency_penalty: is subtracted from them once for each time; 0 is off.
        seed: makes sampling repeatable; None draws a fresh seed.
        max_tokens: most tokens to generate.
        stop: strings at which the answer ends; they are not part of it.
        eos_token_ids: tokens at which the answer ends.
        logprobs: how many alternatives to report per token beside the chosen one's log-probability;
            None reports nothing.
        constraint: makes a sequence's constraint; None lets it say anything.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = (2,)
    logprobs: int | None = None
    constraint: Callable[[], Constraint] | None = None

    def __post_init__(self) -> None:
        number = phrase("a number")
        for name in _REAL:
            value = getattr(self, name)
            _require(isinstance(value, Real), name, value, number)
        _require(
            self.temperature == 0 or _LEAST_TEMPERATURE <= self.temperature < math.inf,
            "temperature",
            self.temperature,
            phrase("0 (greedy) or a number from 0.000001"),
        )
        whole = phrase("0 (off) or a larger whole number")
        _require(_whole(self.top_k, 0), "top_k", self.top_k, whole)
        _require(0 < self.top_p <= 1, "top_p", self.top_p, phrase("above 0 and at most 1"))
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, phrase("from 0 to 1"))
        _require(
            _LEAST_PENALTY <= self.repetition_penalty <= 1 / _LEAST_PENALTY,
            "repetition_penalty",
            self.repetition_penalty,
            phrase("from 0.0001 to 10000"),
        )
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            _require(abs(penalty) <= _MOST_PENALTY, name, penalty, phrase("from -2 to 2"))
        if self.seed is not None:
            below = phrase("a whole number from 0, below 2^63")
            _require(_whole(self.seed, 0, _SEEDS), "seed", self.seed, below)
        from_1 = phrase("a whole number from 1")
        _require(_whole(self.max_tokens, 1), "max_tokens", self.max_tokens, from_1)
        _require(
            _texts(self.stop),
            "stop",
            self.stop,
            phrase("a tuple of strings that are not empty"),
        )
        ids = phrase("a tuple of token ids")
        _require(_token_ids(self.eos_token_ids), "eos_token_ids", self.eos_token_ids, ids)
        if self.logprobs is not None:
            from_0 = phrase("a whole number from 0")
            _require(_whole(self.logprobs, 0), "logprobs", self.logprobs, from_0)
        made = phrase("None or a function that makes a constraint")
        _require(
            self.constraint is None or callable(self.constraint),
            "constraint",
            self.constraint,
            made,
        )

    def changed(self, **changes: Any) -> SamplingParams:
        """Give a copy with some values replaced.

        Raises:
            UsageError: a value that is not allowed, or a name that is no parameter.
        """
        unknown = changes.keys() - self.__dataclass_fields__.keys()
        if unknown:
            raise UsageError(
                "No sampling parameter is called {given}; there are {names}.",
                given=", ".join(sorted(unknown)),
                names=", ".join(self.__dataclass_fields__),
            )
        return replace(self, **changes)

    def within(self, context: int, prompt_tokens: int, asked: int | None) -> SamplingParams:
        """Return a copy whose answer fits behind its prompt.

        Args:
            context: tokens that prompt and answer may have together.
            prompt_tokens: tokens of the prompt.
            asked: the `max_tokens` that the user asked for, which is kept; None lets the answer
                have what is left.

        Raises:
            ContextLengthError: there is no room for that.
        """
        room = context - prompt_tokens
        if asked is None and room < 1:
            raise ContextLengthError(
                "A prompt and its answer may have {context} tokens together here, but the prompt "
                "alone has {prompt}; shorten it.",
                context=context,
                prompt=prompt_tokens,
            )
        if asked is not None and room < asked:
            raise ContextLengthError(
                "A prompt and its answer may have {context} tokens together here, but the prompt "
                "has {prompt} and max_tokens asks for {asked}; shorten one of them.",
                context=context,
                prompt=prompt_tokens,
                asked=asked,
            )
        return self.changed(max_tokens=min(self.max_tokens, room))

    @classmethod
    def from_generation_config(cls, config: Any, **changes: Any) -> SamplingParams:
        """Read a checkpoint's generation configuration (transformers' `GenerationConfig`).

        `do_sample` false means greedy whatever the temperature; a value that is absent is off.
        """
        eos = _value(config, "eos_token_id", ())
        read = cls(
            temperature=_value(config, "temperature", 1.0) if config.do_sample else 0.0,
            top_k=_value(config, "top_k", 0),
            top_p=_value(config, "top_p", 1.0),
            min_p=_value(config, "min_p", 0.0),
            repetition_penalty=_value(config, "repetition_penalty", 1.0),
            max_tokens=_value(config, "max_new_tokens", cls.max_tokens),
            eos_token_ids=(eos,) if isinstance(eos, int) else tuple(eos),
        )
        return read.changed(**changes)


def _value(config: Any, name: str, default: Any) -> Any:
    value = getattr(config, name, None)
    return default if value is None else value


def _whole(value: object, least: int, below: float = math.inf) -> bool:
    return isinstance(value, int) and least <= value < below


def _texts(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(s, str) and s for s in value)


def _token_ids(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(i, Integral) for i in value)


def _require(holds: bool, name: str, given: object, allowed: str) -> None:
    if not holds:
        raise UsageError(
            "{name} is {given!r}; allowed is {allowed}.",
            name=name,
            given=given,
            allowed=translate(allowed),
        )


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Apply the repetition penalty to logits [vocabulary] at the token ids `seen`, int64 [n]."""
    scores = logits[seen]
    return logits.index_put((seen,), torch.where(scores < 0, scores * penalty, scores / penalty))


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """Give the probabilities [vocabulary] of the next token, from penalized logits [vocabulary].

    With temperature 0 all weight is on the likeliest token.
    """
    if params.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax()[None], 1.0)
    logits = logits / params.temperature
    if 0 < params.top_k < logits.numel():
        kth = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if params.top_p < 1:
        logits = _keep_top_p(logits, params.top_p)
    probabilities = logits.softmax(0)
    if params.min_p > 0:
        floor = params.min_p * probabilities.max()
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        probabilities = probabilities / probabilities.sum()
    return probabilities


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Drop the least likely tokens whose probabilities add up to at most 1 - top_p."""
    ascending, order = logits.sort(descending=False)
    dropped = ascending.softmax(0).cumsum(0) <= 1 - top_p
    dropped[-1] = False
    return logits.index_fill(0, order[dropped], float("-inf"))


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities before temperature and filters: of the chosen and the likeliest tokens."""

    chosen: float
    top: tuple[tuple[int, float], ...]


def check_finite(logits: Tensor) -> None:
    """Raise NumericalError if a logit of any shape is NaN, or the largest is infinite."""
    if not math.isfinite(largest := float(logits.max())):  # a NaN is the largest
        raise NumericalError(
            "The model computed the logit {value}, which is not finite: its weights are damaged, "
            "or their values overflow in this dtype. Check the checkpoint, or load it with dtype "
            "float32.",
            value=largest,
        )


class Sampler:
    """The choice of tokens of one sequence: parameters, random numbers, the tokens seen so far.

    Each sequence draws from its own generator, so a seeded answer does not depend on what else is
    in the batch.

    Args:
        params: how to choose.
        prompt: tokens to which the repetition penalty applies from the start.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int] = ()) -> None:
        self.params = params
        self._seen = dict.fromkeys(prompt)
        self._seen_ids = torch.tensor(list(self._seen), dtype=torch.long)
        self._said: Counter[int] = Counter()
        self._constraint = None if params.constraint is None else params.constraint()
        self._random = torch.Generator()
        if params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(params.seed)

    def __call__(self, logits: Tensor) -> tuple[int, TokenLogprobs | None]:
        """Choose the next token from logits, float32 [vocabulary].

        Raises:
            NumericalError: a logit is NaN or the largest is infinite.
        """
        check_finite(logits)
        penalized = self._constrained(self._penalized(logits))
        if self.params.temperature == 0:
            token = int(penalized.argmax())
        else:
            probabilities = distribution(penalized, self.params).cpu()
            token = int(torch.multinomial(probabilities, 1, generator=self._random))
        self._remember(token)
        return token, self._logprobs(logits, token)

    def likeliest(self, logits: Tensor) -> int:
        """Give the token of the largest logit [vocabulary] after penalties; nothing is noted."""
        return int(self._penalized(logits).argmax())

    def _penalized(self, logits: Tensor) -> Tensor:
        params = self.params
        if params.repetition_penalty != 1.0:
            self._seen_ids = self._seen_ids.to(logits.device)
            logits = penalize(logits, self._seen_ids, params.repetition_penalty)
        if self._said and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self._said), device=logits.device)
            counts = logits.new_tensor(list(self._said.values()))
            penalties = params.presence_penalty + params.frequency_penalty * counts
            logits = logits.index_add(0, ids, -penalties)
        return logits

    def _constrained(self, logits: Tensor) -> Tensor:
        if self._constraint is None:
            return logits
        allowed = self._constraint.allowed()
        if allowed.dtype != torch.bool or allowed.shape != logits.shape:
            raise UsageError(
                "The constraint allows {dtype} {shape}; it must be torch.bool {right_shape}, one "
                "for each token of the vocabulary.",
                dtype=allowed.dtype,
                shape=list(allowed.shape),
                right_shape=list(logits.shape),
            )
        logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        if float(logits.max()) == -math.inf:
            raise UsageError(
                "The constraint allows no token that may be chosen here; it must allow one."
            )
        return logits

    def _remember(self, token: int) -> None:
        self._said[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        if self.params.repetition_penalty != 1.0 and token not in self._seen:
            self._seen[token] = None
            self._seen_ids = torch.cat([self._seen_ids, self._seen_ids.new_tensor([token])])

    def _logprobs(self, logits: Tensor, token: int) -> TokenLogprobs | None:
        if self.params.logprobs is None:
            return None
        scores = logits.log_softmax(0)
        top = scores.topk(min(self.params.logprobs, scores.numel()))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return TokenLogprobs(float(scores[token]), tuple(pairs))
