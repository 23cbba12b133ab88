"""Guessed tokens leave the distribution of sampled answers as it is: chi-squared over many seeds.

Expected are not the answers of an engine without guesses but the probabilities themselves, token by
token from the network's logits. A rule of acceptance that is wrong must be found out, too.
"""

import random
from collections import Counter

import pytest
import torch

from baichuan.engine import loop
from baichuan.engine.draft import PassTimes
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import Sampler, SamplingParams, distribution
from baichuan.engine.speculation import Speculation
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

SEEDS, TOKENS, VOCABULARY = 500, 4, 5
#: Any three tokens in a row, nearly: something to look up, whatever is said.
PROMPT = random.Random(0).choices(range(VOCABULARY), k=80)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=TOKENS, eos_token_ids=())
WAYS = {
    "temperature": SAMPLED,
    "filters": SAMPLED.changed(temperature=0.8, top_p=0.9, top_k=4, min_p=0.05),
    "penalties": SAMPLED.changed(
        repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.7
    ),
}


def network(seed):
    torch.manual_seed(seed)
    config = BaichuanConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=3,
        initializer_range=0.4,
        pad_token_id=None,
    )
    return BaichuanForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return network(1)


@pytest.fixture(scope="module")
def draft():
    return network(3)


@pytest.fixture
def judged(monkeypatch):
    """Guess wherever it is possible, paying or not; count the tokens by who guessed them."""
    counts = Counter()
    learn = Speculation.learn

    def counting(self, guesser, right):
        source = "draft" if guesser.by_draft else "lookup"
        counts[source, "right"] += right
        counts[source, "wrong"] += len(guesser.guess) > right
        learn(self, guesser, right)

    monkeypatch.setattr(Speculation, "learn", counting)
    monkeypatch.setattr(PassTimes, "cost", -1.0)
    return counts


@torch.no_grad()
def probabilities(model, params):
    """Give the probability of each answer, by its tokens."""
    answers = {(): 1.0}
    for _ in range(TOKENS):
        logits = model(torch.tensor([[*PROMPT, *answer] for answer in answers])).logits[:, -1]
        longer = {}
        for (answer, so_far), row in zip(answers.items(), logits.float(), strict=True):
            sampler = Sampler(params, PROMPT)
            for token in answer:
                sampler._remember(token)
            for token, p in enumerate(distribution(sampler._penalized(row), params).tolist()):
                if p > 0:
                    longer[(*answer, token)] = so_far * p
        answers = longer
    return answers


def answers(engine, params):
    """Sample an answer for each seed, five at a time."""
    said: dict[int, list[int]] = {}
    waiting = list(range(SEEDS))
    while waiting or engine.running:
        while waiting and engine.running < 5:
            said[engine.add(PROMPT, params.changed(seed=waiting.pop()))] = []
        for step in engine.step():
            said[step.request].append(step.token)
    return Counter(map(tuple, said.values()))


def p_value(observed, expected):
    """Of Pearson's chi-squared test; answers expected less than five times count as one."""
    assert set(observed) <= set(expected)
    cells = [[0.0, 0.0]]
    for answer, probability in expected.items():
        if probability * SEEDS < 5:
            cells[0][0] += observed[answer]
            cells[0][1] += probability * SEEDS
        else:
            cells.append([observed[answer], probability * SEEDS])
    seen, due = torch.tensor([cell for cell in cells if cell[1]], dtype=torch.double).T
    assert len(due) > 10
    deviation = ((seen - due) ** 2 / due).sum()
    return float(torch.special.gammaincc(torch.tensor((len(due) - 1) / 2), deviation / 2))


@pytest.mark.parametrize("way", WAYS)
def test_answers_come_as_often_as_they_are_probable(model, draft, judged, way):
    params = WAYS[way]
    engine = Engine(model, str, speculate=True, draft=draft)
    assert p_value(answers(engine, params), probabilities(model, params)) > 0.01
    assert min(judged[s, how] for s in ("lookup", "draft") for how in ("right", "wrong")) > 20


class Eager(Sampler):
    """Draws a second time where the first draw was not the guess, which then comes too often."""

    guess: list[int]

    def __call__(self, logits):
        guess = self.guess.pop(0) if self.guess else None
        probable = distribution(self._penalized(logits), self.params)
        if int(torch.multinomial(probable, 1, generator=self._random)) == guess:
            self._remember(guess)
            return guess, None
        return super().__call__(logits)


@pytest.mark.usefixtures("judged")
def test_a_wrong_rule_of_acceptance_is_found_out(model, draft, monkeypatch):
    follow = Engine._follow

    def told(self, sequence, rows):
        sequence.sampler.guess = list(sequence.guess)
        return follow(self, sequence, rows)

    monkeypatch.setattr(loop, "Sampler", Eager)
    monkeypatch.setattr(Engine, "_follow", told)
    engine = Engine(model, str, speculate=True, draft=draft)
    assert p_value(answers(engine, SAMPLED), probabilities(model, SAMPLED)) < 1e-6
