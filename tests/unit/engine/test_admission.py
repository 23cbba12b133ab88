"""Room for caches: who waits, who shares, and that answers do not depend on it."""

import pytest
from tests.unit.engine.test_loop import PLAIN, TOKENIZER, model, prompt_of, run, tokens  # noqa: F401

from baichuan.engine.cache import BLOCK
from baichuan.engine.loop import Engine
from baichuan.engine.steps import CacheUse
from baichuan.errors import UsageError


def budgeted(model, blocks, **settings):  # noqa: F811
    return Engine(model, TOKENIZER.decode, cache_tokens=blocks * BLOCK, **settings)


def answers(engine, prompts, params=PLAIN):
    found = {}
    for step in engine.generate_batch(prompts, params):
        found.setdefault(step.request, []).append(step.token)
    return [found[number] for number in range(len(prompts))]


def test_answers_are_those_without_a_limit(model):  # noqa: F811
    shared = prompt_of(2 * BLOCK + 3)
    prompts = [[*shared, *prompt_of(n, seed=n)] for n in (1, 40, 70)] + [
        prompt_of(9),
        prompt_of(90),
    ]
    free = Engine(model, TOKENIZER.decode)
    expected = [tokens(run(free, prompt)) for prompt in prompts]
    for blocks in (4, 6, 9, 40):
        engine = budgeted(model, blocks, prefill_chunk=50)
        for _ in range(2):  # the second time with what the first has left
            assert answers(engine, prompts) == expected
        use = engine.cache_use
        assert (use.held, use.waiting, use.limit) == (0, 0, blocks * BLOCK)
        assert use.kept <= use.limit


def test_the_limit_holds_and_the_order_is_that_of_arrival(model):  # noqa: F811
    engine = budgeted(model, 4)
    numbers = [engine.add(prompt_of(100, seed=n), PLAIN) for n in range(4)]  # 2 blocks each
    first_seen, most = {}, 0
    while engine.running:
        for step in engine.step():
            first_seen.setdefault(step.request, len(first_seen))
        most = max(most, engine.cache_use.held + engine.cache_use.kept)
        assert len([n for n in numbers if n in first_seen]) >= 2
    assert list(first_seen) == numbers
    assert 0 < most <= 4 * BLOCK
    assert engine.cache_use.held == 0


def test_a_large_request_is_not_overtaken_for_ever(model):  # noqa: F811
    engine = budgeted(model, 4)
    engine.add(prompt_of(50), PLAIN)
    large = engine.add(prompt_of(4 * BLOCK - 30), PLAIN)
    small = engine.add(prompt_of(10), PLAIN)
    order = []
    while engine.running:
        order += [step.request for step in engine.step() if step.finish_reason]
    assert order.index(large) < order.index(small)


def test_a_shared_beginning_is_computed_once(model):  # noqa: F811
    engine = budgeted(model, 16)
    shared = prompt_of(3 * BLOCK)
    run(engine, [*shared, 700])
    steps = run(engine, [*shared, 701, 702])
    assert steps[0].usage.cached_tokens == 3 * BLOCK
    # and while the first is still being answered
    other = prompt_of(2 * BLOCK, seed=5)
    engine.add([*other, 700], PLAIN)
    engine.step()
    second = engine.add([*other, 701], PLAIN)
    usage = next(s.usage for s in iter(engine.step, []) for s in s if s.request == second)
    assert usage.cached_tokens == 2 * BLOCK


def test_who_leaves_leaves_nothing_behind(model):  # noqa: F811
    engine = budgeted(model, 4)
    numbers = [engine.add(prompt_of(100, seed=n), PLAIN) for n in range(4)]
    engine.step()
    assert engine.cache_use == CacheUse(4 * BLOCK, engine.cache_use.held, engine.cache_use.kept, 2)
    for number in reversed(numbers):
        engine.cancel(number)
        engine.cancel(number)
    assert engine.running == 0 and engine.step() == []
    assert (engine.cache_use.held, engine.cache_use.waiting) == (0, 0)


def test_what_never_fits_is_refused(model):  # noqa: F811
    engine = budgeted(model, 2)
    engine.add(prompt_of(2 * BLOCK - 23), PLAIN)
    with pytest.raises(UsageError, match=r"prompt has 106 tokens and its answer up to 24.* 128 in"):
        engine.add(prompt_of(106), PLAIN)
    with pytest.raises(UsageError, match="cache_tokens is 0; allowed is 1 or more"):
        Engine(model, TOKENIZER.decode, cache_tokens=0)


def test_a_conversation_brings_its_own_cache(model):  # noqa: F811
    engine = budgeted(model, 2)
    cache = model.new_cache()
    run(engine, prompt_of(300), PLAIN, cache)
    assert len(cache) > 300 and engine.cache_use.held == 0
