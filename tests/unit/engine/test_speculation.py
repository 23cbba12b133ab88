"""Guessed tokens: where they come from, and that they change nothing but the number of passes."""

from itertools import pairwise

import pytest
import torch

from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.engine.speculation import MOST, PromptLookup
from baichuan.kernels import native
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

needs_native = pytest.mark.skipif(len(native.available()) < 2, reason="needs native kernels")
GREEDY = SamplingParams(max_tokens=60, eos_token_ids=())
WAYS = {
    "greedy": GREEDY,
    "sampled": GREEDY.changed(temperature=0.7, top_p=0.9, seed=5),
    "penalized": GREEDY.changed(
        repetition_penalty=1.3, frequency_penalty=0.4, temperature=1, seed=1
    ),
    "logprobs": GREEDY.changed(logprobs=2),
    "eos": GREEDY.changed(eos_token_ids=tuple(range(40))),
    "stop": GREEDY.changed(stop=("7,7,7",)),
    "short": GREEDY.changed(max_tokens=3),
}


def network(attention):
    """A quantized network whose attention has so much weight."""
    torch.manual_seed(3)
    config = BaichuanConfig(
        vocab_size=90,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        initializer_range=0.1,
    )
    network = BaichuanForCausalLM(config).eval()
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight *= attention
    return network.quantize(8)


@pytest.fixture(scope="module")
def model():
    return network(attention=0.1)


@pytest.fixture(scope="module")
def repeating():
    """Sees the newest token alone, so that it soon says the same again and again."""
    return network(attention=0)


def decode(ids):
    return "".join(f"{token}," for token in ids)


class Counted:
    """A network that counts its passes."""

    def __init__(self, model):
        self._model = model
        self.passes = 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def forward_chunks(self, chunks):
        self.passes += 1
        return self._model.forward_chunks(chunks)


def prompt_of(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    some = torch.randint(3, 90, (length,), generator=generator).tolist()
    return (some + some)[: length + length // 2]


def without_times(steps):
    return [(s.request, s.token, s.text, s.finish_reason, s.logprobs) for s in steps]


@needs_native
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["model", "repeating"])
def test_the_answer_is_the_same(request, which, way):
    counts, answers = [], []
    for speculate in (False, True):
        counted = Counted(request.getfixturevalue(which))
        engine = Engine(counted, decode, speculate=speculate)
        cache = counted.new_cache()
        steps = list(engine.generate(prompt_of(30), WAYS[way], cache))
        answers.append((without_times(steps), cache.tokens))
        counts.append(counted.passes)
    assert answers[0] == answers[1]
    assert counts[1] <= counts[0]
    if (which, way) == ("repeating", "greedy"):
        assert counts[1] < counts[0] / 2


@needs_native
def test_several_at_once_and_a_bound_for_the_caches(model):
    prompts = [prompt_of(length, seed=length) for length in (5, 20, 41, 70)]
    alone = [
        without_times(Engine(model, decode, speculate=False).generate(prompt, GREEDY))
        for prompt in prompts
    ]
    engine = Engine(model, decode, cache_tokens=64 * 6, speculate=True)
    steps = list(engine.generate_batch(prompts, GREEDY))
    for index in range(4):
        mine = [step for step in steps if step.request == index]
        assert [(0, *rest) for _, *rest in without_times(mine)] == alone[index]
    assert engine.cache_use.held == 0


@needs_native
def test_it_is_on_where_it_changes_nothing(repeating):
    passes = []
    for which in (repeating, BaichuanForCausalLM(repeating.config).eval()):
        counted = Counted(which)
        list(Engine(counted, decode).generate([5, 6, 7, 8] * 9, GREEDY))
        passes.append(counted.passes)
    assert passes[0] < 60 and passes[1] == 60


def test_the_latest_and_longest_match_wins():
    lookup = PromptLookup([1, 2, 3, 10, 11, 0, 1, 2, 3, 20, 21, 22, 23, 24, 1, 2, 3])
    assert lookup.guess(15) == [20, 21, 22]
    assert lookup.guess(2) == [20, 21]
    assert lookup.guess(0) == []
    longer = [9, 9, 9, 9, 9, 1, 2, 3]
    lookup = PromptLookup([*longer, 10, 0, 1, 2, 3, 20, *longer])
    assert lookup.guess(1) == [10]


def test_nothing_suggests_nothing():
    assert PromptLookup([]).guess(9) == []
    assert PromptLookup(range(50)).guess(9) == []


def test_what_repeats_goes_on_repeating():
    lookup = PromptLookup([4, 5, 4, 5, 4])
    lookup.extend([5])
    assert lookup.guess(9) == [4, 5, 4]


def test_right_guesses_grow_and_wrong_ones_pause():
    lookup = PromptLookup(list(range(40)) * 2)
    sizes = []
    for _ in range(4):
        guess = lookup.guess(99)
        sizes.append(len(guess))
        lookup.learn(len(guess), len(guess))
    assert sizes == [3, 7, MOST, MOST]
    pauses = []
    for _ in range(6):
        silent = 0
        while not lookup.guess(99):
            silent += 1
        pauses.append(silent)
        lookup.learn(4, 0)
    assert pauses[0] == 0 and all(a <= b for a, b in pairwise(pauses)) and pauses[-1] >= 64


def test_behind_a_replaced_token_the_copy_goes_on():
    lookup = PromptLookup(range(30))
    lookup.extend([5, 6, 7])
    assert lookup.guess(3) == [8, 9, 10]
    lookup.extend([8, 99])
    assert lookup.guess(3) == [10, 11, 12]
    lookup.extend([97, 96])
    assert lookup.guess(3) == []
