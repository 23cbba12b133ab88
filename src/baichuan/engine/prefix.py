"""Blocks of earlier sequences, found again by their tokens: shared system texts, earlier turns.

A tree of full blocks: a node is one block of a cache, its path from the root the tokens that the
block and all before it stand for. A request begins with the longest path that its prompt follows.
Knows blocks and tokens; no request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from baichuan.engine.cache import Block, BlockPool, SequenceCache
from baichuan.kernels.paged import BLOCK

_Tokens = tuple[int, ...]


@dataclass
class _Node:
    block: Block
    used: int  # the clock when a request last went through it
    children: dict[_Tokens, _Node] = field(default_factory=dict)


class PrefixCache:
    """Keeps blocks of a pool until others need the room; the least used go first."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._children: dict[_Tokens, _Node] = {}
        self._clock = 0

    @property
    def spare(self) -> int:
        """Blocks that are kept for reuse alone, which `evict` may give back."""
        return self._pool.spare

    def cache_for(self, prompt: Sequence[int]) -> SequenceCache:
        """Give a cache that begins with as much of the prompt as is kept, in whole blocks.

        The last token of the prompt is never kept: its logits are needed.
        """
        self._clock += 1
        cache = SequenceCache(self._pool)
        children = self._children
        for first in range(0, len(prompt) - BLOCK, BLOCK):
            tokens = tuple(prompt[first : first + BLOCK])
            node = children.get(tokens)
            if node is None:
                break
            node.used = self._clock
            self._pool.share(node.block)
            cache.blocks.append(node.block)
            cache.commit(tokens)
            children = node.children
        return cache

    def keep(self, cache: SequenceCache) -> None:
        """Remember the full blocks of a cache, which shares them from now on."""
        self._clock += 1
        children = self._children
        for number in range(len(cache) // BLOCK):
            tokens = tuple(cache.tokens[number * BLOCK : (number + 1) * BLOCK])
            node = children.get(tokens)
            if node is None:
                node = children[tokens] = _Node(cache.blocks[number], self._clock)
                self._pool.keep(node.block)
            node.used = self._clock
            children = node.children

    def evict(self, count: int) -> None:
        """Give back up to `count` blocks that no sequence holds, the least recently used first.

        Ends of paths go first: what is behind a missing block could not be reached.
        """
        while count > 0:
            ends = [
                (node.used, siblings, tokens)
                for siblings, tokens, node in self._ends(self._children)
                if node.block.users == 1
            ]
            if not ends:
                return
            ends.sort(key=lambda end: end[0])
            for _, siblings, tokens in ends[:count]:
                self._pool.drop(siblings.pop(tokens).block)
            count -= len(ends)

    def _ends(
        self, children: dict[_Tokens, _Node]
    ) -> Iterator[tuple[dict[_Tokens, _Node], _Tokens, _Node]]:
        waiting = [children]
        while waiting:
            siblings = waiting.pop()
            for tokens, node in siblings.items():
                if node.children:
                    waiting.append(node.children)
                else:
                    yield siblings, tokens, node
