"""The engine in a thread of its own, on a real tiny network: many senders, errors, endings."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.engine.loop import Engine
from baichuan.engine.runner import Runner
from baichuan.engine.sampling import SamplingParams
from baichuan.errors import QueueFullError, StoppedError, UsageError
from baichuan.model.tokenizer import BaichuanTokenizer

DATA = Path(__file__).parents[2] / "data"
TOKENIZER = BaichuanTokenizer(str(DATA / "tokenizer" / "tokenizer.model"))
SHORT = SamplingParams(max_tokens=8, eos_token_ids=())
ENDLESS = SamplingParams(max_tokens=1_000_000, eos_token_ids=())


@pytest.fixture
def model():
    config = tiny_config(vocab_size=len(TOKENIZER), initializer_range=0.2)
    return baichuan.BaichuanForCausalLM(config).eval()


@pytest.fixture
def engine(model):
    return Engine(model, TOKENIZER.decode)


@pytest.fixture
def runner(engine):
    with Runner(engine) as runner:
        yield runner


def prompt_of(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(650, 1000, (length,), generator=generator).tolist()


def tokens(steps):
    return [step.token for step in steps]


def test_many_threads_get_what_each_gets_alone(model, runner):
    prompts = [prompt_of(3 + 5 * i, seed=i) for i in range(12)]
    alone = Engine(model, TOKENIZER.decode)
    expected = [tokens(alone.generate(prompt, SHORT)) for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda prompt: tokens(runner.submit(prompt, SHORT)), prompts))
    assert answers == expected
    stats = runner.stats()
    assert (stats.running, stats.queued, stats.finished, stats.held_tokens) == (0, 0, 12, 0)
    assert stats.completion_tokens == 12 * 8
    assert stats.prompt_tokens == sum(map(len, prompts))


def test_an_iterator_stays_at_its_end(runner):
    request = runner.submit(prompt_of(4), SHORT)
    assert len(list(request)) == 8
    assert list(request) == []


def test_an_event_loop_gets_steps_without_a_thread_per_request(runner):
    async def answer(seed):
        arrived = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(step):
            loop.call_soon_threadsafe(arrived.put_nowait, step)

        request = runner.submit(prompt_of(5, seed), SHORT, deliver)
        with pytest.raises(TypeError, match="callback"):
            next(request)
        steps = [await arrived.get()]
        while steps[-1].finish_reason is None:
            steps.append(await arrived.get())
        return steps

    async def main():
        before = threading.active_count()
        answers = await asyncio.gather(*map(answer, range(6)))
        assert threading.active_count() == before
        return answers

    for seed, steps in enumerate(asyncio.run(main())):
        assert tokens(steps) == tokens(runner.submit(prompt_of(5, seed), SHORT))


def test_leaving_the_block_cancels(runner, engine):
    with runner.submit(prompt_of(4), ENDLESS) as request:
        assert next(request).finish_reason is None
    assert all(step.finish_reason is None for step in request)  # what had arrived, then the end
    list(runner.submit(prompt_of(4), SHORT))
    assert (runner.stats().cancelled, runner.stats().running, engine.running) == (1, 0, 0)


def test_a_queued_request_can_be_cancelled(engine):
    with Runner(engine, max_batch=1) as runner:
        first = runner.submit(prompt_of(4), ENDLESS)
        next(first)
        second = runner.submit(prompt_of(4), ENDLESS)
        assert runner.stats().queued == 1
        second.cancel()
        assert list(second) == []
        assert (runner.stats().queued, runner.stats().cancelled) == (0, 1)


def test_a_full_queue_refuses_at_once(engine):
    with Runner(engine, max_batch=1, max_queue=1) as runner:
        requests = [runner.submit(prompt_of(4), ENDLESS) for _ in range(2)]
        with pytest.raises(QueueFullError, match="waiting already"):
            runner.submit(prompt_of(4), SHORT)
        next(requests[0])
        assert (runner.stats().running, runner.stats().queued) == (1, 1)
        requests[0].cancel()
        next(requests[1])
        third = runner.submit(prompt_of(4), SHORT)
        requests[1].cancel()
        assert len(list(third)) == 8


def test_an_error_in_a_pass_reaches_its_requests_and_the_next_are_served(
    model, runner, monkeypatch, caplog
):
    running = runner.submit(prompt_of(4), ENDLESS)
    next(running)
    forward = model.forward_chunks

    def broken(chunks):
        monkeypatch.setattr(model, "forward_chunks", forward)
        raise MemoryError("no room")

    monkeypatch.setattr(model, "forward_chunks", broken)
    with pytest.raises(MemoryError, match="no room"):
        list(running)
    assert list(running) == []
    assert len(list(runner.submit(prompt_of(4), SHORT))) == 8
    assert (runner.stats().failed, runner.stats().running) == (1, 0)
    assert "a request failed" in caplog.text


def test_an_error_of_one_request_is_its_own(runner, engine, monkeypatch):
    add = engine.add

    def picky(prompt, *rest):
        if len(prompt) == 13:
            raise UsageError("thirteen")
        return add(prompt, *rest)

    monkeypatch.setattr(engine, "add", picky)
    bad, good = runner.submit(prompt_of(13), SHORT), runner.submit(prompt_of(12), SHORT)
    with pytest.raises(UsageError, match="thirteen"):
        next(bad)
    assert len(list(good)) == 8


class Broken:
    """A constraint that gives up at the third token."""

    def __init__(self, size):
        self._mask = torch.ones(size, dtype=torch.bool)
        self._accepted = 0

    def allowed(self):
        return self._mask

    def accept(self, token):
        self._accepted += 1
        if self._accepted == 3:
            raise ArithmeticError("beyond the grammar")


def test_an_error_while_choosing_ends_that_request_alone(model, caplog):
    alone = tokens(Engine(model, TOKENIZER.decode).generate(prompt_of(6), SHORT))
    bad = SHORT.changed(constraint=lambda: Broken(len(TOKENIZER)))
    engine = Engine(model, TOKENIZER.decode, cache_tokens=1024)
    with Runner(engine) as runner:
        good, broken = runner.submit(prompt_of(6), SHORT), runner.submit(prompt_of(6), bad)
        came = [next(broken).token, next(broken).token]
        with pytest.raises(ArithmeticError, match="beyond the grammar"):
            next(broken)
        assert list(broken) == []
        assert came == alone[:2]
        assert tokens(good) == alone
        assert (runner.stats().failed, runner.stats().finished) == (1, 1)
        assert runner.stats().held_tokens == 0
    assert "a request failed" in caplog.text


def test_a_callback_that_fails_loses_its_request_only(runner, caplog):
    def deliver(step):
        raise RuntimeError("Event loop is closed")

    runner.submit(prompt_of(4), ENDLESS, deliver)
    assert len(list(runner.submit(prompt_of(4), SHORT))) == 8
    assert (runner.stats().running, runner.stats().cancelled) == (0, 1)
    assert "callback" in caplog.text


def test_closing_drains_then_refuses(engine):
    runner = Runner(engine)
    requests = [runner.submit(prompt_of(4, seed), SHORT) for seed in range(3)]
    runner.close(drain_seconds=60)
    assert [len(list(request)) for request in requests] == [8, 8, 8]
    with pytest.raises(StoppedError, match="stopped"):
        runner.submit(prompt_of(4), SHORT)
    runner.close()  # once more is no error


def test_closing_ends_what_takes_too_long(engine):
    runner = Runner(engine, max_batch=1)
    running, queued = (runner.submit(prompt_of(4), ENDLESS) for _ in range(2))
    next(running)
    runner.close(drain_seconds=0.01)
    for request in (running, queued):
        with pytest.raises(StoppedError):
            list(request)
    assert engine.running == 0


@pytest.mark.parametrize("given", [{"max_batch": 0}, {"max_queue": -1}])
def test_limits_that_cannot_be(engine, given):
    with pytest.raises(UsageError, match="or more"):
        Runner(engine, **given)


def test_an_empty_prompt_is_refused_at_once(runner):
    with pytest.raises(UsageError, match="no tokens"):
        runner.submit([], SHORT)
