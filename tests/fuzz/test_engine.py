"""Requests of strangers beside a good one: they fail by themselves, and it says what it says alone.

Prompts, sampling values, constraints, stop strings and caches are as callers must not give them,
requests come and are cancelled at any moment, and one token's embedding is NaN.
"""

import contextlib
import random

import pytest
import torch

import baichuan
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.errors import BaichuanError, UsageError
from tests.conftest import tiny_config
from tests.fuzz.harness import run_cases

_WORDS = 90
_DAMAGED = 7
_PROMPTS = ([], [-1], [_WORDS], [2**70], [1.5], ["a"], [[5]], [None], 5, None, "text", {}, [True])
_VALUES = (
    *(None, True, 0, 1, -1, 2, 2**31, 2**63, 2**70, 0.5, 1e-9, 1e308, float("nan"), float("inf")),
    *("x", "", (), ("",), ("a", 1), "abc", [], [1], {}, (2.0,), (-1,), (2**70,), ("a" * 9999,)),
)
_ENGINES = (
    {},
    {"cache_tokens": 512, "prefill_chunk": 16},
    {"speculate": True, "banned_ids": [3, 4, 4]},
)
_BANNED = ([_WORDS], [-1], range(_WORDS), ["a"], [2**70], [1.5], 5, None)


class MisbehavedError(Exception):
    """What a constraint of a stranger raises."""


class Misbehaves:
    """A constraint that is right for a while, and then is not."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._patience = rng, rng.randrange(4)

    def allowed(self):
        self._patience -= 1
        if self._patience >= 0:
            return torch.arange(_WORDS) % 5 != self._rng.randrange(5)
        match self._rng.randrange(6):
            case 0:
                raise MisbehavedError
            case 1:
                return torch.zeros(_WORDS, dtype=torch.bool)
            case 2:
                return torch.ones(_WORDS)
            case 3:
                return torch.ones(self._rng.randrange(_WORDS), dtype=torch.bool)
            case 4:
                return None
            case _:
                return torch.ones(_WORDS, dtype=torch.bool)

    def accept(self, token):
        if self._rng.random() < 0.2:
            raise MisbehavedError


def constraint(rng):
    """Return a constraint's maker, which may fail itself."""

    def make():
        if rng.random() < 0.1:
            raise MisbehavedError
        return Misbehaves(rng)

    return make


def decode(tokens):
    return "".join(chr(60 + token) for token in tokens)


def sampling(rng):
    """Return parameters of a request that may be none, or may misbehave later."""
    given = {"max_tokens": rng.randint(1, 12), "temperature": rng.choice((0, 0.7, 5.0)), "seed": 1}
    if rng.random() < 0.3:
        given["constraint"] = constraint(rng)
    if rng.random() < 0.3:
        given["stop"] = tuple(decode([rng.randrange(_WORDS)]) for _ in range(rng.randrange(4)))
    if rng.random() < 0.3:
        name = rng.choice([name for name in SamplingParams.__dataclass_fields__ if name != "seed"])
        given[name] = rng.choice(_VALUES)
    return SamplingParams(**given)


def prompt(rng, length):
    return [rng.randrange(10, _WORDS) for _ in range(length)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = tiny_config(vocab_size=_WORDS, initializer_range=0.2, pad_token_id=0)
    model = baichuan.BaichuanForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[_DAMAGED] = torch.nan
        model.lm_head.weight[_DAMAGED] = 0  # so that the good ones do not say it
    return model


def good_requests():
    """Return a few requests, whose tokens are known from running alone."""
    rng = random.Random("good")
    greedy = SamplingParams(max_tokens=10, eos_token_ids=())
    sampled = greedy.changed(temperature=0.9, seed=3, top_p=0.9, frequency_penalty=0.5)
    return [(prompt(rng, length), params) for length in (3, 40) for params in (greedy, sampled)]


def hostile(engine, rng, caches):
    """Add a request that is refused, fails later, or does no harm."""
    ids = prompt(rng, rng.choice((1, 2, 20, 70)))
    chosen = rng.random()
    if chosen < 0.2:
        ids = rng.choice(_PROMPTS)
    elif chosen < 0.4:
        ids[rng.randrange(len(ids))] = _DAMAGED
    cache = rng.choice(caches) if rng.random() < 0.4 else None
    return engine.add(ids, sampling(rng), cache)


def beside_strangers(engine, good, rng, caches):
    """Return the tokens of a good request that runs while others come, fail and are cancelled."""
    joins, strangers, number, said = rng.randrange(4), [], None, []
    for moment in range(60):
        if moment == joins:
            number = engine.add(*good)
        if moment < 6 and rng.random() < 0.7:
            with contextlib.suppress(BaichuanError, MisbehavedError):
                strangers.append(hostile(engine, rng, caches))
        if strangers and rng.random() < 0.2:
            engine.cancel(rng.choice(strangers))
        said += [step.token for step in engine.step() if step.request == number]
        assert engine.failed.keys() <= set(strangers), engine.failed
    assert not engine.running
    return said


def tokens_of(engine, good, cache=None):
    return [step.token for step in engine.generate(*good, cache)]


def test_engines(network, fuzz_cases):
    other = baichuan.BaichuanForCausalLM(network.config).eval()
    goods = good_requests()
    alone = [
        [tokens_of(Engine(network, decode, **given), good) for good in goods] for given in _ENGINES
    ]
    assert all(len(tokens) == 10 for answers in alone for tokens in answers)

    def case(rng):
        place, which = rng.randrange(len(_ENGINES)), rng.randrange(len(goods))
        engine = Engine(network, decode, **_ENGINES[place])
        caches = [network.new_cache(), network.new_cache(), other.new_cache()]
        assert beside_strangers(engine, goods[which], rng, caches) == alone[place][which]
        for cache in caches[:2]:  # free again, and right whatever became of who had them
            assert tokens_of(engine, goods[which], cache) == alone[place][which]
        with pytest.raises(UsageError):
            Engine(network, decode, banned_ids=rng.choice(_BANNED))

    run_cases(fuzz_cases // 20, case, name="engines")
