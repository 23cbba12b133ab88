"""The decode loop on a real tiny network: endings, caches, cancelling, counts."""

from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.engine.loop import PREFILL_CHUNK, Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.errors import NumericalError, UsageError
from baichuan.model.tokenizer import BaichuanTokenizer

DATA = Path(__file__).parents[2] / "data"
TOKENIZER = BaichuanTokenizer(str(DATA / "tokenizer" / "tokenizer.model"))
PLAIN = SamplingParams(max_tokens=24, eos_token_ids=())


@pytest.fixture
def model():
    config = tiny_config(vocab_size=len(TOKENIZER), initializer_range=0.2)
    return baichuan.BaichuanForCausalLM(config).eval()


@pytest.fixture
def engine(model):
    return Engine(model, TOKENIZER.decode)


def prompt_of(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(650, 1000, (length,), generator=generator).tolist()


def run(engine, prompt, params=PLAIN, cache=None):
    steps = list(engine.generate(prompt, params, cache))
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    return steps


def constraint_to(ids):
    """A constraint that allows these tokens only, one after the other."""

    class Only:
        def __init__(self):
            self.left = list(ids)

        def allowed(self):
            return torch.arange(len(TOKENIZER)) == self.left[0]

        def accept(self, token):
            self.left.pop(0)

    return Only


def tokens(steps):
    return [step.token for step in steps]


def text(steps):
    return "".join(step.text for step in steps)


def test_texts_join_to_the_decoded_answer(engine):
    prompt = prompt_of(5)
    steps = run(engine, prompt)
    assert TOKENIZER.decode(prompt) + text(steps) == TOKENIZER.decode(prompt + tokens(steps))
    assert (len(steps), steps[-1].finish_reason, engine.running) == (24, "length", 0)


@pytest.mark.parametrize(
    ("prompt", "turns", "space"),
    [
        (TOKENIZER.encode_text("The capital is"), (), " "),
        ([195, *TOKENIZER.encode_text("The capital is")], (195, 196), " "),
        ([*TOKENIZER.encode_text("The capital is"), 196], (195, 196), ""),
        ([*TOKENIZER.encode_text("The capital is"), 196], (), " "),
    ],
)
@pytest.mark.parametrize("stop", ["one", " one"])
def test_only_a_new_turn_drops_the_first_space(model, prompt, turns, space, stop):
    words = TOKENIZER.encode_text("one two")
    params = PLAIN.changed(max_tokens=len(words), constraint=constraint_to(words))
    engine = Engine(model, TOKENIZER.decode, turn_ids=turns)
    assert text(run(engine, prompt, params)) == f"{space}one two"
    cut = run(engine, prompt, params.changed(stop=(stop,)))
    assert text(cut) == (space if stop == "one" else "one two" if not space else "")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_the_answer_with_a_sentence(
    model, engine, temperature, value
):
    with torch.no_grad():
        model.lm_head.weight[700] = value
    params = PLAIN.changed(temperature=temperature, seed=1)
    with pytest.raises(NumericalError, match=r"lm_head.weight holds NaN or infinity"):
        run(engine, prompt_of(5), params)
    assert engine.running == 0


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_banned_ids_are_never_chosen(model, temperature):
    free = Engine(model, TOKENIZER.decode)
    params = PLAIN.changed(temperature=temperature, seed=1, logprobs=3)
    banned = tokens(run(free, prompt_of(5), params))[:3]
    steps = run(Engine(model, TOKENIZER.decode, banned_ids=banned), prompt_of(5), params)
    assert len(steps) == 24
    assert not set(banned) & {i for s in steps for i in (s.token, *dict(s.logprobs.top))}


def test_an_end_token_ends_the_answer_and_is_no_text(engine):
    plain = run(engine, prompt_of(5))
    end = tokens(plain)[6]
    first = tokens(plain).index(end)
    steps = run(engine, prompt_of(5), PLAIN.changed(eos_token_ids=(end, 1)))
    assert tokens(steps) == tokens(plain)[: first + 1]
    assert steps[-1].finish_reason == "eos"
    assert text(steps) == TOKENIZER.decode(tokens(plain)[:first])


@pytest.mark.parametrize("place", [4, 11, 20])
def test_a_stop_string_across_tokens_ends_the_answer_before_it(engine, place):
    plain = run(engine, prompt_of(5))
    whole = text(plain)
    border = len(TOKENIZER.decode(tokens(plain)[:place]))
    stop = whole[border - 1 : border + 1]
    steps = run(engine, prompt_of(5), PLAIN.changed(stop=("never said", stop)))
    assert steps[-1].finish_reason == "stop"
    assert text(steps) == whole[: whole.index(stop)]
    assert len(steps) < len(plain)


def test_what_a_stop_string_holds_back_comes_at_the_end(engine):
    plain = run(engine, prompt_of(5))
    steps = run(engine, prompt_of(5), PLAIN.changed(stop=(text(plain)[-1] + "never said",)))
    assert (text(steps), steps[-1].finish_reason) == (text(plain), "length")


def test_logprobs_are_those_of_the_full_pass(engine, model):
    prompt = prompt_of(6)
    steps = run(engine, prompt, PLAIN.changed(logprobs=3))
    ids = torch.tensor([prompt + tokens(steps)])
    with torch.no_grad():
        scores = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for step, row in zip(steps, scores, strict=True):
        assert step.logprobs.chosen == pytest.approx(row[step.token].item(), abs=1e-4)
        assert [i for i, _ in step.logprobs.top] == row.topk(3).indices.tolist()
    assert run(engine, prompt)[0].logprobs is None


@pytest.mark.parametrize("chunk", [1, 3, 16, PREFILL_CHUNK])
def test_the_prefill_chunk_changes_no_answer(model, engine, chunk):
    seeded = PLAIN.changed(temperature=1.3, seed=5)
    small = Engine(model, TOKENIZER.decode, prefill_chunk=chunk)
    for params in (PLAIN, seeded):
        in_parts, whole = (run(which, prompt_of(33), params) for which in (small, engine))
        assert tokens(in_parts) == tokens(whole)


def test_a_pass_is_bounded_and_a_long_prompt_stops_nobody(model, monkeypatch):
    passes, forward = [], model.forward_chunks

    def watch(chunks):
        passes.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    monkeypatch.setattr(model, "forward_chunks", watch)
    engine = Engine(model, TOKENIZER.decode, prefill_chunk=4)
    short = engine.add(prompt_of(3), PLAIN)
    assert [step.request for step in engine.step()] == [short]
    long = engine.add(prompt_of(18), PLAIN)
    last = engine.add(prompt_of(6), PLAIN)
    arrivals = [[step.request for step in engine.step()] for _ in range(7)]
    assert arrivals == [[short]] * 4 + [[short, long]] * 2 + [[short, long, last]]
    # At most four prompt tokens, first come first served, and one of each that decodes.
    assert passes == [3, 5, 5, 5, 5, 1 + 2, 1 + 1 + 4, 1 + 1 + 2]


def test_a_turn_computes_its_new_tokens_only(model, engine):
    cache, history = model.new_cache(), prompt_of(9)
    for turn in range(4):
        held = len(cache)
        steps = run(engine, history, cache=cache)
        usage = steps[-1].usage
        assert (usage.prompt_tokens, usage.cached_tokens) == (len(history), held)
        assert usage.completion_tokens == len(steps) == 24
        assert tokens(steps) == tokens(run(engine, history))
        # The newest token has not been through the network yet.
        assert cache.tokens == (history + tokens(steps))[:-1]
        history = history + tokens(steps) + prompt_of(3, seed=turn + 1)


@pytest.mark.parametrize("edit", [0, 5, 12])
def test_an_edited_history_reuses_what_is_still_the_same(model, engine, edit):
    cache, history = model.new_cache(), prompt_of(16)
    run(engine, history, cache=cache)
    edited = [*history[:edit], 700 if history[edit] != 700 else 701, *history[edit + 1 :]]
    for prompt, kept in ((edited, edit), (edited, 15), (edited[:7], 6)):
        steps = run(engine, prompt, cache=cache)
        assert steps[-1].usage.cached_tokens == kept
        assert tokens(steps) == tokens(run(engine, prompt))


def test_a_cancelled_request_leaves_the_others_alone(model, engine):
    alone = tokens(run(engine, prompt_of(5)))
    stays = engine.add(prompt_of(5), PLAIN)
    goes = engine.add(prompt_of(8), PLAIN)
    answer = []
    for count in range(24):
        if count == 3:
            engine.cancel(goes)
            engine.cancel(999)
        steps = engine.step()
        assert {step.request for step in steps} <= ({stays, goes} if count < 3 else {stays})
        answer += [step.token for step in steps if step.request == stays]
    assert answer == alone
    assert (engine.running, engine.step()) == (0, [])


def test_closing_the_steps_cancels_and_keeps_the_cache(model, engine):
    cache, prompt = model.new_cache(), prompt_of(6)
    steps = engine.generate(prompt, PLAIN, cache)
    said = [next(steps).token for _ in range(4)]
    steps.close()
    assert engine.running == 0
    assert cache.tokens == prompt + said[:-1]
    more = run(engine, prompt + said, PLAIN.changed(max_tokens=20), cache)
    assert more[-1].usage.cached_tokens == 9
    assert said + tokens(more) == tokens(run(engine, prompt))


def test_an_interrupted_pass_leaves_the_cache_usable(model, engine):
    cache, prompt = model.new_cache(), prompt_of(6)

    def interrupt(*_):
        raise KeyboardInterrupt

    steps = engine.generate(prompt, PLAIN, cache)
    said = [next(steps).token for _ in range(3)]
    hook = model.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    hook.remove()
    assert engine.running == 0
    assert cache.tokens == prompt + said[:-1]
    assert tokens(run(engine, prompt, cache=cache)) == tokens(run(engine, prompt))


def test_counts_and_times(engine):
    for count, step in enumerate(engine.generate(prompt_of(7), PLAIN), 1):
        usage = step.usage
        assert (usage.prompt_tokens, usage.cached_tokens) == (7, 0)
        assert usage.completion_tokens == count
        assert usage.prefill_seconds > 0
        assert usage.decode_seconds >= 0
    assert usage.prefill_speed == pytest.approx(7 / usage.prefill_seconds)
    assert usage.decode_speed == pytest.approx(23 / usage.decode_seconds)


def test_what_cannot_run_is_refused(model, engine):
    cache = model.new_cache()
    with pytest.raises(UsageError, match="no tokens"):
        engine.add([], PLAIN)
    with pytest.raises(UsageError, match="prefill_chunk is 0"):
        Engine(model, str, prefill_chunk=0)
    engine.add(prompt_of(3), PLAIN, cache)
    with pytest.raises(UsageError, match="in use"):
        engine.add(prompt_of(3), PLAIN, cache)


def test_prompts_are_cut_as_if_they_were_alone(model, monkeypatch):
    """For rounding depends on the cut, and with it the answer."""
    passes = []
    forward = model.forward_chunks

    def seen(chunks):
        passes.append([len(chunk.tokens) for chunk in chunks])
        return forward(chunks)

    monkeypatch.setattr(model, "forward_chunks", seen)
    engine = Engine(model, TOKENIZER.decode, prefill_chunk=50)
    for length in (30, 120, 15, 49):
        engine.add(prompt_of(length), PLAIN.changed(max_tokens=2))
    while engine.running:
        engine.step()
    assert passes[0] == [30, 15]  # 50 of the second do not fit behind the first
    assert passes[1:4] == [[1, 50, 1], [50], [20]]
    assert all(sum(n for n in parts if n > 1) <= 50 for parts in passes)


def test_an_error_in_an_answers_own_part_is_raised_to_whoever_asked_for_it(model):
    plain = tokens(run(Engine(model, TOKENIZER.decode), prompt_of(5)))
    place = next(i for i, token in enumerate(plain) if i > 2 and token not in plain[:i])

    def decode(ids):
        if plain[place] in ids:
            raise LookupError("no such piece")
        return TOKENIZER.decode(ids)

    engine = Engine(model, decode)
    short = PLAIN.changed(max_tokens=2)
    other = engine.add(prompt_of(7), short)
    with pytest.raises(LookupError, match="no such piece"):
        list(engine.generate(prompt_of(5), PLAIN))
    assert (engine.running, engine.cache_use.held, engine.failed.keys() & {other}) == (0, 0, set())
    with pytest.raises(LookupError, match="no such piece"):
        list(engine.generate_batch([prompt_of(5), prompt_of(6)], PLAIN))
    assert engine.running == 0
    assert tokens(run(engine, prompt_of(5), short)) == plain[:2]
