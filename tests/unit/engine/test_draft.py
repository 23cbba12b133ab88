"""A draft model's guesses: how many, from which cache, and that they change no answer."""

import random

import pytest
import torch

from baichuan.engine.draft import Acceptance, Draft, PassTimes, best_size, pays
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import Sampler, SamplingParams
from baichuan.errors import UsageError
from baichuan.kernels import native
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

needs_native = pytest.mark.skipif(len(native.available()) < 2, reason="needs native kernels")
GREEDY = SamplingParams(max_tokens=60, eos_token_ids=())
WAYS = {
    "greedy": GREEDY,
    "sampled": GREEDY.changed(temperature=0.4, top_p=0.9, seed=5),
    "penalized": GREEDY.changed(repetition_penalty=1.3, frequency_penalty=0.4),
    "eos": GREEDY.changed(eos_token_ids=tuple(range(10))),
    "short": GREEDY.changed(max_tokens=2),
}


def network(seed, vocabulary=90):
    torch.manual_seed(seed)
    config = BaichuanConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        initializer_range=0.1,
    )
    return BaichuanForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return network(3).quantize(8)


@pytest.fixture(scope="module")
def drafts():
    """The network before it was rounded, which nearly always agrees; and another one."""
    return {"alike": network(3), "unlike": network(4)}


@pytest.fixture
def cheap(monkeypatch):
    """A draft of so little cost, whatever the machine does meanwhile."""
    monkeypatch.setattr(PassTimes, "cost", 0.02)


class Counted:
    """A network that counts its passes and their tokens."""

    def __init__(self, model):
        self._model = model
        self.passes = self.tokens = 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def forward_chunks(self, chunks):
        self.passes += 1
        self.tokens += sum(len(chunk.tokens) for chunk in chunks)
        return self._model.forward_chunks(chunks)


def decode(ids):
    return "".join(f"{token}," for token in ids)


def prompt_of(length, seed=0):
    return random.Random(seed).choices(range(3, 90), k=length)


def without_times(steps):
    return [(s.token, s.text, s.finish_reason, s.logprobs) for s in steps]


@needs_native
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["alike", "unlike"])
@pytest.mark.usefixtures("cheap")
def test_the_answer_is_the_same(model, drafts, which, way):
    counts, answers = [], []
    for draft in (None, drafts[which]):
        counted = Counted(model)
        engine = Engine(counted, decode, speculate=draft and True, draft=draft)
        cache = counted.new_cache()
        steps = list(engine.generate(prompt_of(70), WAYS[way], cache))
        answers.append((without_times(steps), cache.tokens))
        counts.append(counted.passes)
    assert answers[0] == answers[1]
    if (which, way) == ("alike", "penalized"):  # where nothing repeats
        assert counts[1] < counts[0] / 2


@needs_native
@pytest.mark.usefixtures("cheap")
def test_several_at_once_share_beginnings_and_leave(model, drafts):
    beginning = prompt_of(130)
    prompts = [beginning + prompt_of(length, seed=length) for length in (1, 20, 41, 70)]
    alone = [
        without_times(Engine(model, decode, speculate=False).generate(prompt, WAYS["penalized"]))
        for prompt in prompts
    ]
    engine = Engine(model, decode, cache_tokens=64 * 12, draft=drafts["alike"])
    for leaves_after in (0, 25):
        leaving = engine.add(prompts[0], GREEDY)
        steps = []
        for step in engine.generate_batch(prompts, WAYS["penalized"]):
            if len(steps) == leaves_after:
                engine.cancel(leaving)
            steps.append(step)
        for index in range(4):
            mine = [step for step in steps if step.request == index]
            assert without_times(mine) == alone[index]
    assert engine.cache_use.held == 0


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("seed", range(3))
def test_the_cache_follows_the_text_wherever_it_goes(drafts, seed):
    """Right, half right and wrong guesses, and tokens that others guessed: as if begun anew."""
    chance, small = random.Random(seed), drafts["alike"]
    sampler = Sampler(GREEDY)
    draft = Draft(small, prefill_chunk=512)
    text = draft.begin(prompt_of(100, seed), sampler)
    text.acceptance = Acceptance((99.0, 100.0))
    for _ in range(12):
        guess = draft.guess({text: 6})[text]
        fresh = Draft(small, prefill_chunk=512)
        again = fresh.begin(text.tokens, sampler)
        again.acceptance = text.acceptance
        assert fresh.guess({again: 6})[again] == guess
        right = chance.choice([0, len(guess) // 2, len(guess)])
        text.tokens += [*guess[:right], *chance.choices(range(3, 90), k=chance.choice([1, 1, 9]))]


def test_a_long_text_is_read_in_parts_beside_others(drafts):
    counted = Counted(drafts["alike"])
    draft = Draft(counted, prefill_chunk=32)
    short, long = (draft.begin(prompt_of(length), Sampler(GREEDY)) for length in (10, 70))
    assert draft.guess({short: 1, long: 1}).keys() == {short}
    assert counted.tokens == 32
    assert draft.guess({long: 1}).keys() == set()
    assert draft.guess({long: 1}).keys() == {long}
    assert counted.tokens == 80


def test_a_beginning_is_kept_for_the_next(drafts):
    counted = Counted(drafts["alike"])
    draft = Draft(counted, prefill_chunk=512)
    first = draft.begin(prompt_of(200), Sampler(GREEDY))
    draft.guess({first: 1})
    draft.end(first)
    counted.tokens = 0
    second = draft.begin([*prompt_of(200), 5, 6], Sampler(GREEDY))
    draft.guess({second: 1})
    assert counted.tokens == 202 - 192


def test_no_more_is_kept_than_was_held_at_once(drafts):
    draft = Draft(drafts["alike"], prefill_chunk=512)
    for seed in range(5):
        text = draft.begin(prompt_of(200, seed), Sampler(GREEDY))
        draft.guess({text: 1})
        assert draft._pool.used <= 2 * 4
        draft.end(text)
        assert draft._pool.used <= 4


@needs_native
@pytest.mark.usefixtures("cheap")
def test_a_draft_that_is_wrong_is_hardly_asked(model, drafts):
    counted = Counted(drafts["unlike"])
    engine = Engine(model, decode, draft=counted)
    params = GREEDY.changed(max_tokens=300, temperature=1, seed=2)
    passes = []
    for _ in range(2):
        counted.passes = 0
        list(engine.generate(prompt_of(20), params))
        passes.append(counted.passes)
    assert 0 < passes[1] <= passes[0] < 100


@pytest.mark.usefixtures("cheap")
def test_what_was_seen_at_one_text_holds_for_the_next(drafts):
    draft = Draft(drafts["alike"], prefill_chunk=512)
    sizes = []
    for _ in range(2):
        text = draft.begin([5, 6, 7], Sampler(GREEDY))
        sizes.append(len(draft.guess({text: 15})[text]))
        for _ in range(9):
            draft.learn(text, 4, 0)
    assert sizes[0] > sizes[1] >= 1


def test_penalties_reach_the_guess(drafts):
    draft = Draft(drafts["alike"], prefill_chunk=512)
    prompt = prompt_of(20)
    plain = draft.begin(prompt, Sampler(GREEDY, prompt))
    (likeliest,) = draft.guess({plain: 1})[plain]
    prompt = [likeliest, *prompt]
    for penalty, same in ((1.0, True), (1000.0, False)):
        sampler = Sampler(GREEDY.changed(repetition_penalty=penalty), [likeliest])
        text = draft.begin(prompt[1:], sampler)
        (guess,) = draft.guess({text: 1})[text]
        assert (guess == likeliest) == same


@pytest.mark.parametrize(
    ("rate", "cost", "size"),
    [(0.05, 0.05, 0), (0.5, 0.45, 0), (0.5, 0.05, 2), (0.8, 0.05, 5), (0.99, 0.0, 15)],
)
def test_as_many_are_guessed_as_yield_most(rate, cost, size):
    assert best_size(rate, cost, 15) == size
    assert best_size(rate, cost, 1) == min(size, 1)
    assert pays(rate, cost) == (size > 0)


def test_only_judged_tokens_count():
    acceptance = Acceptance((0.0, 1.0))
    acceptance.learn(guessed=8, right=2)
    assert acceptance.rate == pytest.approx(2 / 4)
    for _ in range(50):
        acceptance.learn(guessed=2, right=2)
    assert 0.9 < acceptance.rate < 1


def test_what_a_pass_costs_is_measured():
    times = PassTimes()
    before = times.cost
    for seconds in (0.01, 9.0, 0.02):
        times.draft(seconds)
        assert times.cost == before
    for guessed in (0, 5, 0):
        times.large(0.1 * (1 + 0.08 * guessed), guessed)
    assert times.cost == pytest.approx(0.2)


def test_a_draft_that_cannot_be(model, drafts):
    with pytest.raises(UsageError, match="speculation is off"):
        Engine(model, decode, speculate=False, draft=drafts["alike"])
    other = BaichuanConfig(
        vocab_size=91,
        hidden_size=6,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=3,
    )
    with pytest.raises(UsageError, match="91 tokens, the model 90"):
        Engine(model, decode, draft=BaichuanForCausalLM(other))
