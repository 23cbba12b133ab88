"""Beginnings of earlier sequences: found by their tokens, given up when others need the room."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from baichuan.engine.cache import BLOCK, BlockPool, SequenceCache, blocks_for
from baichuan.engine.prefix import PrefixCache


def filled(pool, tokens):
    """A cache of one layer whose keys are the tokens."""
    cache = SequenceCache(pool)
    extend(cache, tokens)
    return cache


def extend(cache, tokens):
    key = torch.tensor(tokens, dtype=torch.float32)[None, None, :, None]
    cache.append(0, key, -key)
    cache.commit(tokens)


def keys(cache):
    return cache.gather(0, torch.zeros(1, 1, 1, 1), 0)[0].flatten().tolist()


def test_whole_blocks_of_the_longest_path_are_shared():
    pool = BlockPool(1)
    prefixes = PrefixCache(pool)
    text = list(range(3 * BLOCK + 10))
    prefixes.keep(filled(pool, text))
    other = [*text[: 2 * BLOCK + 5], 7, 7]
    cache = prefixes.cache_for(other)
    assert cache.tokens == text[: 2 * BLOCK] == [int(k) for k in keys(cache)]
    assert len(prefixes.cache_for([9, *text])) == 0
    assert len(prefixes.cache_for(text[:BLOCK])) == 0, "the last token is to be computed"
    assert len(prefixes.cache_for(text[: BLOCK + 1])) == BLOCK


def test_what_is_kept_is_not_written_to():
    pool = BlockPool(1)
    prefixes = PrefixCache(pool)
    text = list(range(BLOCK))
    cache = filled(pool, text)
    prefixes.keep(cache)
    cache.truncate(BLOCK - 2)  # a conversation goes back
    extend(cache, [501, 502])
    assert keys(prefixes.cache_for([*text, 1])) == text
    assert keys(cache) == [*text[:-2], 501, 502]


def test_the_least_used_goes_first_and_nothing_that_is_in_use():
    pool = BlockPool(1)
    prefixes = PrefixCache(pool)
    texts = [[n] * (2 * BLOCK) for n in range(3)]
    for text in texts:
        cache = filled(pool, text)
        prefixes.keep(cache)
        cache.truncate(0)
    assert prefixes.spare == pool.used == 6
    used = prefixes.cache_for([*texts[0], 1])
    assert len(used) == 2 * BLOCK and prefixes.spare == 4
    prefixes.evict(1)
    assert [len(prefixes.cache_for([*text, 1])) for text in texts] == [128, 64, 128]
    used.truncate(0)
    for cache in (prefixes.cache_for([*text, 1]) for text in texts):
        cache.truncate(0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 5)), max_size=12))
def test_blocks_are_neither_lost_nor_given_back_twice(rounds):
    pool = BlockPool(1)
    prefixes = PrefixCache(pool)
    for branch, blocks, evicted in rounds:
        prompt = [0] * BLOCK + [branch] * (blocks * BLOCK)
        cache = prefixes.cache_for(prompt)
        extend(cache, prompt[len(cache) :])
        assert keys(cache) == prompt
        prefixes.keep(cache)
        assert pool.used - prefixes.spare == len(cache.blocks)
        cache.truncate(0)
        assert prefixes.spare == pool.used
        before = pool.used
        prefixes.evict(evicted)
        assert pool.used == max(0, before - evicted)
    prefixes.evict(10**6)
    assert pool.used == prefixes.spare == 0


def test_sizes():
    assert [blocks_for(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
