"""Keys and values of running sequences, in blocks. Knows no network, no text and no request.

A `SequenceCache` belongs to one sequence, so sequences of different lengths decode together and a
conversation keeps its own. Its positions lie in blocks of 64 (paged attention: Kwon et al. 2023,
arXiv 2309.06180), so that it grows without copying and sequences with a common beginning share its
blocks. It remembers which tokens it holds: a new prompt reuses the longest prefix that it shares
with the old one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from baichuan.errors import UsageError
from baichuan.kernels.memory import empty_in_huge_pages
from baichuan.kernels.paged import BLOCK, PagedCaches


class Block:
    """Room for `BLOCK` positions in every layer.

    Memory is taken when a layer first needs it, on the device and in the dtype of what arrives. On
    a CPU that is one slab for all layers: what is never written costs addresses, no memory. A
    network spread over several devices has each other layer's part beside the layer.

    Attributes:
        users: sequences that hold the block; one that others hold too is not written to.
        kept: whether one of the users is a `PrefixCache`.
        slab: [layers, 2 (keys, values), heads, BLOCK, head_dim] on the CPU, or None.
    """

    def __init__(self, layers: int) -> None:
        self.users = 1
        self.kept = False
        self.slab: Tensor | None = None
        self._layers = layers
        self._elsewhere: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes set aside."""
        parts = self._elsewhere.values()
        return sum(part.nbytes for part in parts) + (0 if self.slab is None else self.slab.nbytes)

    def part(self, layer: int, like: Tensor) -> Tensor:
        """Give a layer's keys and values [2, heads, BLOCK, head_dim].

        Args:
            layer: its index.
            like: what is to be written here, [1, heads, any, head_dim].
        """
        shape = (2, like.shape[1], BLOCK, like.shape[3])
        if like.device.type == "cpu":
            if self.slab is None:
                self.slab = empty_in_huge_pages((self._layers, *shape), like.dtype)
            return self.slab[layer]
        if layer not in self._elsewhere:
            self._elsewhere[layer] = like.new_empty(shape)
        return self._elsewhere[layer]

    def copy(self, source: Block) -> None:
        """Take over the content of another block."""
        if source.slab is not None:
            self.slab = empty_in_huge_pages(source.slab.shape, source.slab.dtype)
            self.slab.copy_(source.slab)
        self._elsewhere = {layer: part.clone() for layer, part in source._elsewhere.items()}


class BlockPool:
    """Blocks that sequences take and give back; what was given back is used again.

    Attributes:
        limit: most blocks in use at a time, or None. Whoever takes from a limited pool asks
            `available` first.
        used: blocks in use.
        spare: those of them that only a `PrefixCache` uses.
        network: whose keys and values they hold, by any value that is equal for the same network
            alone.
    """

    def __init__(self, layers: int, limit: int | None = None, network: object = None) -> None:
        self.limit = limit
        self.network = network
        self.used = 0
        self.spare = 0
        self._layers = layers
        self._free: list[Block] = []

    @property
    def available(self) -> float:
        """Blocks that may still be taken; infinity without a limit."""
        return float("inf") if self.limit is None else self.limit - self.used

    def take(self) -> Block:
        """Give a block whose content does not matter any more."""
        assert self.available > 0, "the caller asks for `available` before"
        self.used += 1
        if not self._free:
            return Block(self._layers)
        block = self._free.pop()
        block.users = 1
        return block

    def share(self, block: Block) -> None:
        """Count one more user of a block that is in use."""
        self.spare -= block.kept and block.users == 1
        block.users += 1

    def give_back(self, block: Block) -> None:
        """Say that one of the block's users does not need it any more."""
        block.users -= 1
        self.spare += block.kept and block.users == 1
        if block.users == 0:
            self.used -= 1
            self._free.append(block)

    def keep(self, block: Block) -> None:
        """Make a `PrefixCache` a further user of a block that a sequence uses."""
        self.share(block)
        block.kept = True

    def drop(self, block: Block) -> None:
        """Take back a spare block from the `PrefixCache` that kept it."""
        self.spare -= 1
        block.kept = False
        self.give_back(block)


class SequenceCache:
    """Keys and values of one sequence, and the tokens they came from."""

    def __init__(self, pool: BlockPool) -> None:
        self.tokens: list[int] = []
        self.blocks: list[Block] = []
        self.network = pool.network
        self._pool = pool
        self._in_use = threading.Lock()

    def acquire(self) -> None:
        """Reserve the cache for one request, of whatever engine and thread, until `release`.

        Raises:
            UsageError: another request has it.
        """
        if not self._in_use.acquire(blocking=False):
            raise UsageError(
                "The cache is in use by another answer; give each its own, or read that answer to "
                "its end, or close its stream, before the cache is used again."
            )

    def release(self) -> None:
        """Let another request have the cache."""
        self._in_use.release()

    def __len__(self) -> int:
        """Positions held by every layer."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, unused room included."""
        return sum(block.nbytes for block in self.blocks)

    def fork(self) -> SequenceCache:
        """Give a cache that begins with what this one holds, sharing its blocks."""
        twin = SequenceCache(self._pool)
        twin.tokens = self.tokens.copy()
        twin.blocks = self.blocks[: blocks_for(len(self))]
        for block in twin.blocks:
            self._pool.share(block)
        return twin

    def reserve(self, new: int) -> None:
        """Have room for `new` positions behind the known ones, in blocks of this sequence alone.

        The last block may be shared and partly filled: it is copied then, before it is written to.
        """
        first = len(self) // BLOCK
        if first < len(self.blocks) and self.blocks[first].users > 1:
            shared = self.blocks[first]
            self.blocks[first] = self._pool.take()
            self.blocks[first].copy(shared)
            self._pool.give_back(shared)
        while len(self.blocks) < blocks_for(len(self) + new):
            self.blocks.append(self._pool.take())

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write new positions of one layer behind the `len(self)` known ones.

        The positions count as held only once `commit` has been told their tokens, so that every
        layer of one forward pass appends at the same place.

        Args:
            layer: index of the layer.
            key, value: [1, heads, new, head_dim].
        """
        new, start = key.shape[2], len(self)
        self.reserve(new)
        done = 0
        while done < new:
            block, offset = divmod(start + done, BLOCK)
            count = min(BLOCK - offset, new - done)
            part = self.blocks[block].part(layer, key)
            part[0, :, offset : offset + count] = key[0, :, done : done + count]
            part[1, :, offset : offset + count] = value[0, :, done : done + count]
            done += count

    def gather(
        self, layer: int, like: Tensor, new: int, heads: slice = slice(None), room: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Copy keys and values into one tensor each, those just appended included.

        Args:
            layer: index of the layer.
            like: a tensor that was appended.
            new: positions appended behind the `len(self)` known ones.
            heads: which ones.
            room: zeros behind head_dim.

        Returns:
            Keys and values, each [1, heads, len(self) + new, head_dim + room].
        """
        end, (_, count, _, width) = len(self) + new, like.shape
        count = len(range(count)[heads])
        joined = like.new_empty((2, count, end, width + room))
        joined[..., width:] = 0
        for number, block in enumerate(self.blocks[: blocks_for(end)]):
            part = joined[:, :, number * BLOCK : (number + 1) * BLOCK]
            part[..., :width] = block.part(layer, like)[:, heads, : part.shape[2]]
        return joined[:1], joined[1:]

    def commit(self, tokens: Sequence[int]) -> None:
        """Record the tokens whose positions every layer has appended."""
        self.tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on, and give back the blocks that leaves empty."""
        del self.tokens[length:]
        kept = blocks_for(len(self))
        for block in self.blocks[kept:]:
            self._pool.give_back(block)
        del self.blocks[kept:]

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keep the longest prefix shared with `prompt` and forget the rest.

        The last token of the prompt is never kept: its logits are needed, so it is computed.

        Returns:
            The number of positions kept.
        """
        kept = 0
        limit = min(len(self), len(prompt) - 1)
        while kept < limit and self.tokens[kept] == prompt[kept]:
            kept += 1
        self.truncate(kept)
        return kept


#: Chunks of up to so many tokens attend a position at a time, as if they had come one by one.
FEW_TOKENS = 16


def blocks_for(positions: int) -> int:
    """Give the number of blocks that hold so many positions."""
    return -(-positions // BLOCK)


@dataclass
class Chunk:
    """Tokens of one sequence to run through the network, behind what its cache holds.

    Attributes:
        tokens: the new tokens, at least one.
        cache: the sequence's cache; the forward pass appends to it and commits, if `kept`.
        logits: how many trailing positions' logits are wanted (0 while a prompt is unfinished).
        kept: whether the cache takes the tokens up. Chunks that are not kept leave it as it is, so
            many may go on behind one cache: each sees it and itself, and none sees another.
    """

    tokens: Sequence[int]
    cache: SequenceCache
    logits: int = 1
    kept: bool = True


@dataclass
class Batch:
    """Chunks that go through the network side by side, flattened to one row of tokens.

    The linear layers see one [1, total, hidden] tensor and so read their weights once per step;
    attention runs on each chunk's own cache.

    Attributes:
        spans: first and last + 1 row of each chunk.
        newest: rows of the kept chunks of up to `FEW_TOKENS` tokens, which attend in one call and
            get, to the last bit, what they would get one after the other.
        wanted: rows whose logits are wanted.
    """

    chunks: Sequence[Chunk]
    spans: list[tuple[int, int]] = field(init=False)
    newest: list[int] = field(init=False)
    wanted: list[int] = field(init=False)
    _paged: PagedCaches | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.spans = []
        end = 0
        for chunk in self.chunks:
            self.spans.append((end, end + len(chunk.tokens)))
            end += len(chunk.tokens)
        spans = list(zip(self.chunks, self.spans, strict=True))
        self.newest = [row for chunk, span in spans if _is_short(chunk) for row in range(*span)]
        self.wanted = [
            row for chunk, (_, last) in spans for row in range(last - chunk.logits, last)
        ]

    @property
    def branches(self) -> Iterator[tuple[SequenceCache, list[int]]]:
        """Give each cache that chunks go on behind without being kept, and those chunks' places."""
        found: dict[int, list[int]] = {}
        for place, chunk in enumerate(self.chunks):
            if not chunk.kept:
                found.setdefault(id(chunk.cache), []).append(place)
        return ((self.chunks[places[0]].cache, places) for places in found.values())

    def paged(self, like: Tensor) -> PagedCaches:
        """Give the caches of the rows in `newest` for the CPU's kernel, the same for every layer.

        Args:
            like: [1, heads, any, head_dim] of what will be appended, on a CPU.
        """
        if self._paged is None:
            slabs: list[list[Tensor]] = []
            counts: list[int] = []
            for chunk in filter(_is_short, self.chunks):
                cache, new = chunk.cache, len(chunk.tokens)
                cache.reserve(new)
                for block in cache.blocks:
                    block.part(0, like)
                slabs += [[b.slab for b in cache.blocks if b.slab is not None]] * new
                counts += range(len(cache), len(cache) + new)
            self._paged = PagedCaches(slabs, counts)
        return self._paged

    def commit(self) -> None:
        """Record in each cache the tokens that have now passed through every layer."""
        for chunk in self.chunks:
            if chunk.kept:
                chunk.cache.commit(chunk.tokens)


def _is_short(chunk: Chunk) -> bool:
    return chunk.kept and len(chunk.tokens) <= FEW_TOKENS


class DecoderModel(Protocol):
    """All that the engine knows of a network."""

    @property
    def exact_rows(self) -> bool:
        """Whether short chunks give, to the last bit, what their tokens give one by one."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of token ids, and of logits."""
        ...

    def new_pool(self, limit: int | None = None) -> BlockPool:
        """Give a pool of blocks that fit this network."""
        ...

    def new_cache(self) -> SequenceCache:
        """Give an empty cache that fits this network, with a pool of its own."""
        ...

    def forward_chunks(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Run the chunks and commit them to their caches.

        Returns:
            Per chunk float32 logits [chunk.logits, vocabulary] of its last positions.
        """
        ...
