"""The choice of tokens: the same distribution as transformers' processors, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from baichuan.engine.sampling import Sampler, SamplingParams, distribution, penalize
from baichuan.errors import UsageError


def random_logits(seed, size=97, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that ties occur.
    return (spread * torch.randn(size, generator=generator)).mul(8).round().div(8)


def by_transformers(logits, seen, params):
    scores, ids = logits[None], torch.tensor([seen], dtype=torch.long)
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    chain = [TemperatureLogitsWarper(params.temperature)]
    chain += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    chain += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    chain += [MinPLogitsWarper(params.min_p)] if params.min_p else []
    for warper in chain:
        scores = warper(ids, scores)
    return scores.softmax(-1)[0]


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**31),
    seen=st.lists(st.integers(0, 96), min_size=1, max_size=30),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 120),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
)
def test_distribution_is_that_of_transformers(seed, seen, **values):
    params = SamplingParams(**values)
    logits = random_logits(seed)
    ours = distribution(penalize(logits, torch.tensor(seen), params.repetition_penalty), params)
    expected = by_transformers(logits, seen, params)
    assert ours.sum().item() == pytest.approx(1)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(ours > 0, expected > 0)


def test_temperature_zero_is_the_likeliest_token():
    logits = random_logits(1)
    assert distribution(logits, SamplingParams())[logits.argmax()] == 1
    assert Sampler(SamplingParams())(logits) == (int(logits.argmax()), None)


def test_the_least_temperature_is_greedy_in_effect():
    logits = torch.tensor([30.0, 31.0, -1e4])
    assert distribution(logits, SamplingParams(temperature=1e-6)).tolist() == [0, 1, 0]


def test_the_likeliest_token_always_stays():
    for narrow in ({"top_p": 1e-9}, {"min_p": 1.0}, {"top_k": 1}):
        probabilities = distribution(torch.arange(9.0), SamplingParams(temperature=1.0, **narrow))
        assert probabilities.tolist() == [0] * 8 + [1]


def test_samples_follow_the_distribution():
    logits, count = random_logits(2, size=8, spread=1.0), 4000
    params = SamplingParams(temperature=0.8, top_k=5, seed=3)
    sampler = Sampler(params)
    drawn = torch.tensor([sampler(logits)[0] for _ in range(count)])
    shares = torch.bincount(drawn, minlength=8) / count
    expected = distribution(logits, params)
    assert (shares[expected == 0] == 0).all()
    assert ((shares - expected).abs() <= 5 * (expected / count).sqrt()).all()


def test_seeds_repeat_and_differ():
    logits = random_logits(4, spread=0.1)

    def draw(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler(logits)[0] for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_samplers_do_not_touch_the_global_random_numbers():
    state = torch.random.get_rng_state()
    Sampler(SamplingParams(temperature=1.0))(random_logits(5))
    assert torch.equal(torch.random.get_rng_state(), state)


@given(st.lists(st.integers(0, 19), max_size=10), st.integers(0, 2**31))
def test_the_penalty_covers_the_prompt_and_every_chosen_token(prompt, seed):
    params = SamplingParams(repetition_penalty=1.7)
    sampler, seen = Sampler(params, prompt), list(prompt)
    for step in range(12):
        logits = random_logits(seed + step, size=20)
        penalized = logits.tolist()
        for i in set(seen):
            penalized[i] *= 1.7 if penalized[i] < 0 else 1 / 1.7
        token, _ = sampler(logits)
        assert penalized[token] == pytest.approx(max(penalized))
        seen.append(token)


@given(
    st.lists(st.integers(0, 19), max_size=10),
    st.integers(0, 2**31),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_presence_and_frequency_penalties_cover_the_answer_only(prompt, seed, presence, frequency):
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    sampler, said = Sampler(params, prompt), []
    for step in range(12):
        logits = random_logits(seed + step, size=20)
        expected = [
            value - presence * (i in said) - frequency * said.count(i)
            for i, value in enumerate(logits.tolist())
        ]
        token, _ = sampler(logits)
        assert expected[token] == pytest.approx(max(expected), abs=1e-4)
        said.append(token)


class Ascending:
    """Allows tokens above the one before."""

    def __init__(self):
        self.accepted = []

    def allowed(self):
        return torch.arange(97) > (self.accepted or [-1])[-1]

    def accept(self, token):
        self.accepted.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_constraint_has_the_last_word(temperature):
    params = SamplingParams(temperature=temperature, seed=1, top_k=4, constraint=Ascending)
    samplers = [Sampler(params), Sampler(params)]  # each sequence has a constraint of its own
    chosen = []
    for sampler in samplers:
        tokens = [-1]
        while tokens[-1] < 96:
            logits = random_logits(len(tokens))
            token, _ = sampler(logits)
            assert token > tokens[-1]
            if temperature == 0:
                first = tokens[-1] + 1
                assert logits[token] == logits[first:].max()
            tokens.append(token)
        chosen.append(tokens)
    assert chosen[0] == chosen[1]


def test_logprobs_are_those_of_the_plain_logits():
    logits = random_logits(6)
    scores = logits.double().log_softmax(0)
    params = SamplingParams(temperature=2.0, top_k=3, repetition_penalty=1.5, seed=0, logprobs=4)
    token, logprobs = Sampler(params, prompt=[1, 2])(logits)
    assert logprobs.chosen == pytest.approx(scores[token].item(), abs=1e-5)
    assert [value for _, value in logprobs.top] == pytest.approx(scores.topk(4).values.tolist())
    assert all(value == pytest.approx(scores[i].item()) for i, value in logprobs.top)
    everything = Sampler(SamplingParams(logprobs=500))(logits)[1]
    assert len(everything.top) == 97
    assert Sampler(SamplingParams(logprobs=0))(logits)[1].top == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-0.1, 1e-9, math.inf, math.nan)),
        *(("top_k", v) for v in (-1, 2.5)),
        *(("top_p", v) for v in (0, -0.5, 1.01, math.nan)),
        *(("min_p", v) for v in (-0.1, 1.5, math.nan)),
        *(("repetition_penalty", v) for v in (0, 5e-324, 1e300, -1.0, math.inf, math.nan)),
        *(("presence_penalty", v) for v in (-2.1, 3, math.nan)),
        *(("frequency_penalty", v) for v in (-2.1, math.inf)),
        *(("seed", v) for v in (-1, 2**63, 1.5)),
        *(("max_tokens", v) for v in (0, -5, 1.5)),
        *(("stop", v) for v in (("a", ""), "abc", (5,))),
        *(("logprobs", v) for v in (-1, 0.5)),
    ],
)
def test_values_that_cannot_be_are_refused_with_a_sentence(name, value):
    for make in (SamplingParams, SamplingParams().changed):
        with pytest.raises(UsageError, match=rf"^{name} is .*; allowed is .*\.$"):
            make(**{name: value})


def test_unknown_parameters_are_named():
    with pytest.raises(UsageError, match=r"parameter is called top_q; there are .*top_k"):
        SamplingParams().changed(top_q=1)


def test_a_checkpoints_generation_configuration_is_obeyed():
    published = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_k=5,
        top_p=0.85,
        repetition_penalty=1.1,
        max_new_tokens=2048,
        eos_token_id=2,
    )
    assert SamplingParams.from_generation_config(published) == SamplingParams(
        temperature=0.3, top_k=5, top_p=0.85, repetition_penalty=1.1, max_tokens=2048
    )
    changed = SamplingParams.from_generation_config(published, temperature=0.0, seed=4)
    assert (changed.temperature, changed.seed, changed.top_k) == (0.0, 4, 5)


def test_absent_values_of_a_generation_configuration_are_off():
    empty = GenerationConfig(eos_token_id=[2, 9], do_sample=False, temperature=0.7)
    params = SamplingParams.from_generation_config(empty)
    assert params == SamplingParams(eos_token_ids=(2, 9), top_k=empty.top_k or 0)
    sampling = SamplingParams.from_generation_config(GenerationConfig(do_sample=True))
    assert (sampling.temperature, sampling.eos_token_ids) == (1.0, ())
