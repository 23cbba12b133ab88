"""Keys and values of running sequences. Knows no network, no text and no request.

A `SequenceCache` belongs to one sequence, so sequences of different lengths decode together and a
conversation keeps its own. It remembers which tokens it holds: a new prompt reuses the longest
prefix that it shares with the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

#: Positions by which a full buffer grows. Growing by a share of its length instead would hold that
#: share of memory in vain.
_GROWTH = 256


class SequenceCache:
    """Keys and values of one sequence, and the tokens they came from.

    Buffers are made at the first `append` of each layer, on the device and in the dtype of what
    arrives, so a network spread over several devices keeps each layer's cache beside the layer.
    """

    def __init__(self, layers: int) -> None:
        self.tokens: list[int] = []
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def __len__(self) -> int:
        """Positions held by every layer."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, unused room included."""
        return sum(b.nbytes for b in (*self._keys, *self._values) if b is not None)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions of one layer behind the `len(self)` known ones.

        The positions count as held only once `commit` has been told their tokens, so that every
        layer of one forward pass appends at the same place.

        Args:
            layer: index of the layer.
            key, value: [1, heads, new, head_dim].

        Returns:
            Views [1, heads, len(self) + new, head_dim] of all positions.
        """
        start, end = len(self), len(self) + key.shape[2]
        keys = self._keys[layer] = _room(self._keys[layer], key, start, end)
        values = self._values[layer] = _room(self._values[layer], value, start, end)
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, :end], values[:, :, :end]

    def commit(self, tokens: Sequence[int]) -> None:
        """Record the tokens whose positions every layer has appended."""
        self.tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; the buffers stay."""
        del self.tokens[length:]

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


def _room(buffer: Tensor | None, new: Tensor, start: int, end: int) -> Tensor:
    """Give a buffer with at least `end` positions that holds the first `start` of the old one."""
    if buffer is not None and buffer.shape[2] >= end:
        return buffer
    batch, heads, _, width = new.shape
    capacity = -(-end // _GROWTH) * _GROWTH
    grown = new.new_empty((batch, heads, capacity, width))
    if buffer is not None:
        grown[:, :, :start] = buffer[:, :, :start]
    return grown


@dataclass
class Chunk:
    """Tokens of one sequence to run through the network, behind what its cache holds.

    Attributes:
        tokens: the new tokens, at least one.
        cache: the sequence's cache; the forward pass appends to it and commits.
        logits: how many trailing positions' logits are wanted (0 while a prompt is unfinished).
    """

    tokens: Sequence[int]
    cache: SequenceCache
    logits: int = 1


@dataclass
class Batch:
    """Chunks that go through the network side by side, flattened to one row of tokens.

    The linear layers see one [1, total, hidden] tensor and so read their weights once per step;
    attention runs per chunk on the chunk's own cache.
    """

    chunks: Sequence[Chunk]
    spans: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.spans = []
        end = 0
        for chunk in self.chunks:
            self.spans.append((end, end + len(chunk.tokens)))
            end += len(chunk.tokens)

    def commit(self) -> None:
        """Record in each cache the tokens that have now passed through every layer."""
        for chunk in self.chunks:
            chunk.cache.commit(chunk.tokens)


class DecoderModel(Protocol):
    """All that the engine knows of a network."""

    def new_cache(self) -> SequenceCache:
        """Give an empty cache that fits this network."""
        ...

    def forward_chunks(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Run the chunks and commit them to their caches.

        Returns:
            Per chunk float32 logits [chunk.logits, vocabulary] of its last positions.
        """
        ...
