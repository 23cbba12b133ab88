"""The work that is timed; how long it takes is nobody's assertion."""

import pytest

from baichuan.bench.job import Job
from baichuan.bench.measure import compare_positions, measure_speeds
from baichuan.bench.networks import both_positions


class Counting:
    """A network that notes what the engine asks of it: (new tokens, tokens held) of each pass."""

    def __init__(self, network) -> None:
        self._network, self.calls = network, []

    def __getattr__(self, name):
        return getattr(self._network, name)

    def forward_chunks(self, chunks):
        self.calls.append([(len(chunk.tokens), len(chunk.cache)) for chunk in chunks])
        return self._network.forward_chunks(chunks)


def decode(tokens):
    return "x" * len(tokens)


def test_every_repeat_answers_the_whole_prompt_anew(model):
    told = []
    counting = Counting(model)
    job = Job(prompt=600, tokens=5, repeats=2)
    speeds = measure_speeds(counting, decode, job, lambda *what: told.append(what))
    once = [[(512, 0)], [(88, 512)], *([(1, 600 + n)] for n in range(4))]
    assert counting.calls == [*once[:-1], *once, *once]  # the warm-up is one token shorter
    assert len(speeds.prefill_seconds) == len(speeds.decode_seconds) == 2
    assert min(speeds.prefill_seconds + speeds.decode_seconds) > 0
    assert speeds.cache_bytes >= 604 * 2 * 2 * 48 * 4
    assert ("prompt", 512, 1200) in told
    assert ("prompt", 600 + 512, 1200) in told
    assert told[-1] == ("answer", 10, 10)


@pytest.mark.parametrize(("tokens", "turn", "turns"), [(2, 1, 1), (30, 4, 7), (200, 16, 12)])
def test_both_sides_do_the_same_in_turn(model, tokens, turn, turns):
    networks = {name: Counting(network) for name, network in both_positions(model).items()}
    job = Job(prompt=10, tokens=tokens, repeats=3)
    positions = compare_positions(networks, decode, job, lambda *what: None)
    assert networks["alibi"].calls == networks["rope"].calls
    behind = [[(1, 10 + n)] for n in range(turn * turns)]
    assert networks["alibi"].calls == [[(10, 0)]] * 5 + behind  # warm-up, three pairs, the answer
    assert positions.turn_tokens == turn
    for taken in (positions.prefill_seconds, positions.turn_seconds):
        assert set(taken) == {"alibi", "rope"}
    assert {len(seconds) for seconds in positions.prefill_seconds.values()} == {3}
    assert {len(seconds) for seconds in positions.turn_seconds.values()} == {turns}
