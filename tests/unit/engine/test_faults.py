"""What is wrong with one request ends that request alone; a cache is one answer's at a time."""

import subprocess
import sys
import threading

import pytest
import torch
from tests.unit.engine.test_loop import (  # noqa: F401
    PLAIN,
    TOKENIZER,
    engine,
    model,
    prompt_of,
    run,
    tokens,
)

from baichuan.engine.loop import Engine
from baichuan.engine.runner import Runner
from baichuan.errors import NumericalError, UsageError


@pytest.mark.parametrize("bad", [[5, len(TOKENIZER)], [-1], [2**70], [1.5], ["a"], [[5]], []])
def test_a_prompt_that_is_no_prompt_is_refused_and_its_neighbour_goes_on(engine, bad):  # noqa: F811
    alone = tokens(run(engine, prompt_of(5)))
    good = engine.add(prompt_of(5), PLAIN)
    said = [step.token for step in engine.step()]
    with pytest.raises(UsageError, match=r"token id|no tokens"):
        engine.add(bad, PLAIN)
    while engine.running:
        said += [step.token for step in engine.step() if step.request == good]
    assert said == alone


@pytest.mark.parametrize("banned", [[len(TOKENIZER)], [-1], list(range(len(TOKENIZER)))])
def test_banned_ids_must_leave_a_token_of_the_vocabulary(model, banned):  # noqa: F811
    with pytest.raises(UsageError, match="banned_ids"):
        Engine(model, TOKENIZER.decode, banned_ids=banned)


@pytest.mark.parametrize(
    "changes",
    [
        *({"temperature": "1"}, {"top_p": None}, {"eos_token_ids": 2}, {"eos_token_ids": ("2",)}),
        *({"constraint": 1}, {"constraint": "json"}),
    ],
)
def test_parameters_of_another_type_are_refused(changes):
    with pytest.raises(UsageError, match="allowed is"):
        PLAIN.changed(**changes)


def test_an_error_in_a_pass_is_of_the_request_that_causes_it(model, engine):  # noqa: F811
    alone = tokens(run(engine, prompt_of(5)))
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    good, bad = engine.add(prompt_of(5), PLAIN), engine.add([7, 700], PLAIN)
    said = [step.token for step in engine.step()]
    assert engine.failed.keys() == {bad}
    with pytest.raises(NumericalError, match="embed_tokens"):
        raise engine.failed[bad]
    while engine.running:
        said += [step.token for step in engine.step() if step.request == good]
    assert said == alone


class Says:
    def __init__(self, mask):
        self.mask = mask

    def allowed(self):
        return self.mask

    def accept(self, token):
        pass


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.ones(1, dtype=torch.bool), "must be torch.bool"),
        (torch.ones(len(TOKENIZER)), "must be torch.bool"),
        (torch.zeros(len(TOKENIZER), dtype=torch.bool), "allows no token"),
    ],
)
def test_a_constraint_that_allows_no_known_tokens_is_an_error(engine, mask, match):  # noqa: F811
    with pytest.raises(UsageError, match=match):
        run(engine, prompt_of(5), PLAIN.changed(constraint=lambda: Says(mask)))


def test_a_cache_is_one_answers_at_a_time_whatever_the_engine(model, engine):  # noqa: F811
    cache = model.new_cache()
    half_read = engine.generate(prompt_of(5), PLAIN, cache)
    next(half_read)
    for which in (engine, Engine(model, TOKENIZER.decode)):
        with pytest.raises(UsageError, match="cache is in use"):
            next(which.generate(prompt_of(9), PLAIN, cache))
    half_read.close()
    assert tokens(run(engine, prompt_of(9), cache=cache)) == tokens(run(engine, prompt_of(9)))


def test_a_cache_of_another_network_is_refused(engine, model):  # noqa: F811
    other = type(model)(model.config)
    with pytest.raises(UsageError, match="another model"):
        engine.add(prompt_of(5), PLAIN, other.new_cache())


def test_streams_and_threads_share_an_engine(engine):  # noqa: F811
    prompts = [prompt_of(5 + n, seed=n) for n in range(4)]
    expected = [tokens(run(engine, prompt)) for prompt in prompts]
    streams = [engine.generate(prompt, PLAIN) for prompt in prompts]
    interleaved = zip(*streams, strict=True)
    assert [tokens(steps) for steps in zip(*interleaved, strict=True)] == expected
    found = {}

    def answer(place):
        found[place] = tokens(engine.generate(prompts[place], PLAIN))

    threads = [threading.Thread(target=answer, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(4)] == expected


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_a_callback_raises_stops_no_engine(engine, error):  # noqa: F811
    alone = tokens(run(engine, prompt_of(5)))

    def fail(*_):
        raise error

    with Runner(engine, delivered=fail) as runner:
        runner.submit(prompt_of(4), PLAIN, fail)
        bad = runner.submit(prompt_of(4), PLAIN.changed(constraint=fail))
        assert tokens(runner.submit(prompt_of(5), PLAIN)) == alone
        with pytest.raises(RuntimeError, match=error.__name__):
            next(bad)


EXIT = """
import sys, threading, time
import baichuan
from baichuan.engine.runner import Runner
from baichuan.engine.sampling import SamplingParams
model, tokenizer = baichuan.load()
endless = SamplingParams(max_tokens=100_000, eos_token_ids=())
request = Runner(model.engine(tokenizer)).submit([5, 6, 7], endless)
next(request)
begun = threading.Event()
def chat():
    for _ in model.engine(tokenizer).generate([5, 6, 7], endless):
        begun.set()
threading.Thread(target=chat, daemon=True).start()
begun.wait()
sys.exit(3)
"""


def test_the_interpreter_ends_cleanly_while_threads_compute():
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (3, "")
