"""The cache of one sequence: growth, rollback, reuse of a shared prefix."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from baichuan.engine.cache import BLOCK, Batch, BlockPool, Chunk, SequenceCache, blocks_for


def new(count, start=0):
    """Keys [1, 2, count, 4] whose values tell their positions."""
    return torch.arange(start, start + count).float()[None, None, :, None].expand(1, 2, -1, 4)


def fill(cache, tokens):
    start = len(cache)
    for layer in range(2):
        key = new(len(tokens), start) + layer
        cache.append(layer, key, -key)
        keys, values = cache.gather(layer, key, len(tokens))
        assert torch.equal(keys, new(start + len(tokens)) + layer)
        assert torch.equal(values, -keys)
    cache.commit(tokens)


def held(cache):
    return cache.gather(1, new(1), 0)[0]


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 150)), min_size=1, max_size=6))
def test_appended_positions_survive_growth_and_rollback(rounds):
    pool = BlockPool(2)
    cache = SequenceCache(pool)
    for count, forget in rounds:
        fill(cache, list(range(count)))
        cache.truncate(max(0, len(cache) - forget))
        assert pool.used == len(cache.blocks) == blocks_for(len(cache))
        assert cache.nbytes == len(cache.blocks) * 2 * 2 * 2 * BLOCK * 4 * 4


def test_positions_count_only_when_all_layers_have_them():
    cache = SequenceCache(BlockPool(2))
    fill(cache, [5, 6])
    cache.append(0, new(3), new(3))  # a pass that was interrupted
    assert len(cache) == 2
    fill(cache, [7])
    assert cache.tokens == [5, 6, 7]


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 100), st.integers(0, 200))
def test_forks_share_blocks_and_do_not_see_each_other(shared, mine, yours, back):
    pool = BlockPool(2)
    one = SequenceCache(pool)
    fill(one, list(range(shared)))
    before, twin = pool.used, one.fork()
    assert pool.used == before
    fill(one, [1] * mine)
    twin.truncate(shared - min(back, shared))
    fill(twin, [2] * yours)
    assert torch.equal(held(one), new(shared + mine) + 1)
    assert torch.equal(held(twin), new(len(twin)) + 1)
    assert pool.used <= blocks_for(len(one)) + blocks_for(len(twin))
    one.truncate(0)
    assert torch.equal(held(twin), new(len(twin)) + 1)
    twin.truncate(0)
    assert pool.used == 0


def test_blocks_given_back_are_used_again_and_counted_against_the_limit():
    pool = BlockPool(2, limit=3)
    cache = SequenceCache(pool)
    fill(cache, list(range(3 * BLOCK)))
    assert pool.available == 0
    blocks = set(cache.blocks)
    cache.truncate(BLOCK)
    assert pool.available == 2
    other = SequenceCache(pool)
    fill(other, list(range(BLOCK + 1)))
    assert set(other.blocks) < blocks
    assert BlockPool(1).available == float("inf")


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), min_size=1, max_size=9))
def test_the_longest_shared_prefix_is_reused_but_for_the_last_token(held, prompt):
    cache = SequenceCache(BlockPool(1))
    cache.commit(held)
    kept = cache.reuse(prompt)
    shared = [a == b for a, b in zip(held, prompt[:-1], strict=False)]
    assert kept == [*shared, False].index(False)
    assert cache.tokens == prompt[:kept]


def test_a_batch_lays_its_chunks_side_by_side():
    chunks = [
        Chunk([1, 2, 3], SequenceCache(BlockPool(0))),
        Chunk([4], SequenceCache(BlockPool(0))),
    ]
    batch = Batch(chunks)
    assert batch.spans == [(0, 3), (3, 4)]
    batch.commit()
    assert [chunk.cache.tokens for chunk in chunks] == [[1, 2, 3], [4]]


def test_chunks_that_are_not_kept_leave_their_cache_as_it_is():
    one, other = (SequenceCache(BlockPool(0)) for _ in range(2))
    batch = Batch(
        [
            Chunk([1, 2], one, kept=False),
            Chunk([3], other),
            Chunk([4], one, logits=0, kept=False),
            Chunk([5, 6], other, logits=2, kept=False),
        ]
    )
    assert batch.newest == [2]
    assert batch.wanted == [1, 2, 4, 5]
    assert list(batch.branches) == [(one, [0, 2]), (other, [3])]
    batch.commit()
    assert (one.tokens, other.tokens) == ([], [3])
