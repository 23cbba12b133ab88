"""The cache of one sequence: growth, rollback, reuse of a shared prefix."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from baichuan.engine.cache import Batch, Chunk, SequenceCache


def new(count, start=0):
    """Keys [1, 2, count, 4] whose values tell their positions."""
    return torch.arange(start, start + count).float()[None, None, :, None].expand(1, 2, -1, 4)


def fill(cache, tokens):
    for layer in range(2):
        start = len(cache)
        keys, values = cache.append(layer, new(len(tokens), start), -new(len(tokens), start))
        assert torch.equal(keys, new(start + len(tokens)))
        assert torch.equal(values, -new(start + len(tokens)))
    cache.commit(tokens)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 50)), min_size=1, max_size=6))
def test_appended_positions_survive_growth_and_rollback(rounds):
    cache = SequenceCache(2)
    for count, forget in rounds:
        fill(cache, list(range(count)))
        cache.truncate(max(0, len(cache) - forget))
    # No more than half again what was needed, rounded to whole blocks, per layer, key and value.
    most = max(256, sum(count for count, _ in rounds) * 3 // 2 + 256)
    assert cache.nbytes <= 4 * most * 2 * 4 * 4


def test_positions_count_only_when_all_layers_have_them():
    cache = SequenceCache(2)
    fill(cache, [5, 6])
    cache.append(0, new(3), new(3))  # a pass that was interrupted
    assert len(cache) == 2
    fill(cache, [7])
    assert cache.tokens == [5, 6, 7]


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_the_longest_shared_prefix_is_reused_but_for_the_last_token(held, prompt):
    cache = SequenceCache(1)
    cache.commit(held)
    kept = cache.reuse(prompt)
    shared = [a == b for a, b in zip(held, prompt[:-1], strict=False)]
    assert kept == [*shared, False].index(False)
    assert cache.tokens == prompt[:kept]


def test_a_batch_lays_its_chunks_side_by_side():
    chunks = [Chunk([1, 2, 3], SequenceCache(0)), Chunk([4], SequenceCache(0))]
    batch = Batch(chunks)
    assert batch.spans == [(0, 3), (3, 4)]
    batch.commit()
    assert [chunk.cache.tokens for chunk in chunks] == [[1, 2, 3], [4]]
