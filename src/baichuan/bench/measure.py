"""Timing a network with the engine that users have: prompts, answers, and ALiBi beside RoPE."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from baichuan.bench.job import Job
from baichuan.engine.cache import SequenceCache
from baichuan.engine.detokenize import Decode
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.steps import Step, Usage
from baichuan.model.network import BaichuanForCausalLM

#: Told what goes on, how far it is, and its end: ("answer", 17, 2048).
Tell = Callable[[str, int, int], None]

_WARM_UP_TOKENS = 4
#: Tokens that one side generates before it is the other's turn, at most; and turns at least.
_TURN_TOKENS, _TURNS = 16, 7
_SEED = 0


@dataclass(frozen=True)
class Speeds:
    """Seconds of each repeat, and what the cache held at its end.

    Attributes:
        prefill_seconds: from the start to the first token.
        decode_seconds: from the first to the last token.
        cache_bytes: room set aside.
    """

    prefill_seconds: list[float]
    decode_seconds: list[float]
    cache_bytes: int


@dataclass(frozen=True)
class Positions:
    """ALiBi and RoPE in turn, the same weights and the same work.

    Attributes:
        prefill_seconds: "alibi" and "rope" to the seconds of each prompt, pair by pair.
        turn_seconds: the same for turns of `turn_tokens` generated tokens, along one answer.
        turn_tokens: tokens of a turn.
    """

    prefill_seconds: dict[str, list[float]]
    turn_seconds: dict[str, list[float]]
    turn_tokens: int


def measure_speeds(model: BaichuanForCausalLM, decode: Decode, job: Job, tell: Tell) -> Speeds:
    """Answer one prompt a few times, each time from an empty cache, after a short untimed answer.

    Args:
        model: to measure.
        decode: tokens to text.
        job: how long prompt and answer are, and how often.
        tell: told of the progress.
    """
    engine, prompt = Engine(model, decode, speculate=False), _prompt(job, model.config.vocab_size)
    tell("warm-up", 0, 1)
    _answer(engine, prompt, min(_WARM_UP_TOKENS, job.tokens), model.new_cache(), _silent)
    usages, held = [], 0
    for number in range(job.repeats):
        cache = model.new_cache()
        told = partial(_of_repeat, tell, number, job.repeats)
        usages.append(_answer(engine, prompt, job.tokens, cache, told))
        held = cache.nbytes
    return Speeds(
        [usage.prefill_seconds for usage in usages],
        [usage.decode_seconds for usage in usages],
        held,
    )


def compare_positions(
    networks: dict[str, BaichuanForCausalLM], decode: Decode, job: Job, tell: Tell
) -> Positions:
    """Let two networks do the same work in turn, so that what disturbs one disturbs the other.

    Args:
        networks: "alibi" and "rope".
        decode: tokens to text.
        job: how long prompt and answer are; its repeats are pairs of prompts.
        tell: told of the progress.
    """
    sides = {name: _Side(network, decode, job) for name, network in networks.items()}
    prefill: dict[str, list[float]] = {name: [] for name in sides}
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.prefill()
    for number in range(job.repeats):
        tell("compare-prompts", number, job.repeats)
        for name in _order(sides, number):
            prefill[name].append(sides[name].prefill())
    for side in sides.values():
        side.begin()
    size = max(1, min(_TURN_TOKENS, (job.tokens - 1) // _TURNS))
    count = (job.tokens - 1) // size
    for number in range(count):
        for name in _order(sides, number):
            turns[name].append(sides[name].generate(size))
        tell("compare-answers", 2 * size * (number + 1), 2 * size * count)
    return Positions(prefill, turns, size)


class _Side:
    """One of two networks that work in turn."""

    def __init__(self, model: BaichuanForCausalLM, decode: Decode, job: Job) -> None:
        self._model, self._tokens = model, job.tokens
        self._engine = Engine(model, decode, speculate=False)
        self._prompt = _prompt(job, model.config.vocab_size)

    def prefill(self) -> float:
        """Run the prompt to its first token, from an empty cache; give the seconds."""
        cache = self._model.new_cache()
        return _answer(self._engine, self._prompt, 1, cache, _silent).prefill_seconds

    def begin(self) -> None:
        """Run the prompt to its first token and keep the request."""
        self._engine.add(self._prompt, _greedy(self._tokens))
        while not _step(self._engine):
            pass

    def generate(self, tokens: int) -> float:
        """Generate more tokens; give the seconds."""
        began = time.perf_counter()
        for _ in range(tokens):
            _step(self._engine)
        return time.perf_counter() - began


def _step(engine: Engine) -> list[Step]:
    """Run a step; raise what a request failed with."""
    steps = engine.step()
    for error in engine.failed.values():
        raise error
    return steps


def _answer(
    engine: Engine, prompt: list[int], tokens: int, cache: SequenceCache, tell: Tell
) -> Usage:
    """Run one request to its end."""
    engine.add(prompt, _greedy(tokens), cache)
    usage = None
    while engine.running:
        for step in _step(engine):
            usage = step.usage
        if usage is None:
            tell("prompt", len(cache), len(prompt))
        else:
            tell("answer", usage.completion_tokens, tokens)
    assert usage is not None, "an answer has a token"
    return usage


def _order(sides: dict[str, _Side], number: int) -> list[str]:
    """Let the other side begin each other time."""
    return list(sides) if number % 2 == 0 else list(reversed(sides))


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, eos_token_ids=())


def _prompt(job: Job, vocabulary: int) -> list[int]:
    """Give random tokens, the same for every network of that vocabulary."""
    generator = torch.Generator().manual_seed(_SEED)
    ids: list[int] = torch.randint(vocabulary, (job.prompt,), generator=generator).tolist()
    return ids


def _of_repeat(tell: Tell, number: int, repeats: int, stage: str, done: int, total: int) -> None:
    """Tell of one repeat as a part of all."""
    tell(stage, number * total + done, repeats * total)


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""
