"""The decoder layers: norm, attention and MLP around a residual stream.

Pre-norm: x += attention(norm(x)); x += mlp(norm(x)); weight names as published (`W_pack` holds q, k
and v). Knows nothing of bits (linears may be swapped from outside).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from baichuan.engine.cache import Batch, SequenceCache
from baichuan.kernels.gradients import rms_norm
from baichuan.kernels.ops import Norm
from baichuan.kernels.paged import attend_newest
from baichuan.model.attention import (
    attend,
    attend_branches,
    room_for_bias,
    room_for_branches,
    slopes_on,
)
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.fusion import gated, normalized, project
from baichuan.model.rotary import rotate
from baichuan.model.segments import Segments, attend_segments

#: (cos, sin), each [batch, positions, head_dim / 2]; None under ALiBi.
Rotary = tuple[Tensor, Tensor] | None


#: Heads of a prompt that attend together.
HEADS_AT_ONCE = 8


class BaichuanRMSNorm(nn.Module):
    """Root mean square norm; statistics in float32, the weight applied in its own dtype."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of x [..., hidden]."""
        return rms_norm(x, self.weight, self.eps)


class BaichuanMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor, residual: Tensor, norm: Norm | None = None) -> Tensor:
        """Return residual plus the block's output for norm(x); x is [..., hidden]."""
        inner = gated(self.gate_proj, self.up_proj, x, norm=norm)
        return project(self.down_proj, inner, residual=residual)


class BaichuanAttention(nn.Module):
    """Multi-head attention over a padded batch with transformers' cache, or over ragged chunks."""

    def __init__(self, config: BaichuanConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.alibi = config.position_embedding == "alibi"
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        norm: Norm | None,
        mask: Tensor | Segments | None,
        rotary: Rotary,
        cache: Cache | Batch | None,
        wanted: list[int] | None = None,
    ) -> Tensor:
        """Return residual plus attention from norm(x) to itself and to the cache.

        x and residual are [batch, positions, hidden].

        Of a `Batch`, `wanted` names the rows to give; the others' keys and values are kept alone.
        """
        batch, positions, _ = x.shape
        packed = project(self.W_pack, x, norm=norm)
        packed = packed.view(batch, positions, 3, self.heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if isinstance(cache, Batch):
            out = self._attend_chunks(query, key, value, rotary, cache, wanted is not None)
            if wanted is not None:
                residual, out = residual[:, wanted], out[:, :, wanted]
        else:
            out = self._attend_padded(query, key, value, mask, rotary, cache)
        joined = out.transpose(1, 2).reshape(*residual.shape)
        return project(self.o_proj, joined, residual=residual)

    def _attend_padded(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | Segments | None,
        rotary: Rotary,
        cache: Cache | None,
    ) -> Tensor:
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None:
            end = int(cache.get_seq_length(self.layer)) + key.shape[2]
            key, value = cache.update(key, value, self.layer)
            # A static cache returns its whole buffer; what lies behind `end` is not written yet.
            key, value = key[:, :, :end], value[:, :, :end]
        slopes = self._slopes(query)
        if isinstance(mask, Segments):
            return attend_segments(query, key, value, mask, slopes=slopes)
        return attend(query, key, value, slopes=slopes, mask=mask)

    def _attend_chunks(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: Rotary,
        batch: Batch,
        only_wanted: bool,
    ) -> Tensor:
        """Attend from all rows; with `only_wanted`, those of `Batch.wanted` alone have content."""
        newest = batch.newest if query.device.type == "cpu" else []
        if len(newest) == query.shape[2]:
            return self._attend_newest(query, key, value, rotary, batch)
        out = torch.empty_like(query)
        if newest:
            q, k, v = (tensor[:, :, newest] for tensor in (query, key, value))
            angles = rotary and (rotary[0][:, newest], rotary[1][:, newest])
            out[:, :, newest] = self._attend_newest(q, k, v, angles, batch)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        for chunk, (first, last) in zip(batch.chunks, batch.spans, strict=True):
            if first in newest or not chunk.kept:
                continue
            new = slice(first, last)
            chunk.cache.append(self.layer, key[:, :, new], value[:, :, new])
            asked = slice(last - chunk.logits, last) if only_wanted else new
            self._attend_chunk(query[:, :, asked], chunk.cache, last - first, out[:, :, asked])
        for cache, places in batch.branches:
            spans = [batch.spans[place] for place in places]
            counts = [
                batch.chunks[place].logits if only_wanted else last - first
                for place, (first, last) in zip(places, spans, strict=True)
            ]
            found = self._attend_branches(query, key, value, cache, spans, counts)
            if found.shape[2] == out.shape[2]:
                return found
            ends = zip(spans, counts, strict=True)
            rows = [row for (_, last), count in ends for row in range(last - count, last)]
            out[:, :, rows] = found
        return out

    def _attend_branches(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: SequenceCache,
        spans: list[tuple[int, int]],
        counts: list[int],
    ) -> Tensor:
        """Attend from chunks that go on behind one cache; see `attend_branches`."""
        slopes = self._slopes(query)
        past = cache.gather(self.layer, query, 0, room=room_for_branches(slopes))
        return attend_branches(query, key, value, *past, spans, counts, slopes=slopes)

    def _attend_chunk(self, query: Tensor, cache: SequenceCache, new: int, out: Tensor) -> None:
        """Write to `out` what the last of `new` positions get, whose keys are appended already."""
        queries, slopes = query.shape[2], self._slopes(query)
        if not queries:
            return
        # Some heads at a time, so that the copies of their keys and values stay small.
        for first in range(0, self.heads, HEADS_AT_ONCE):
            some = slice(first, first + HEADS_AT_ONCE)
            biases = None if slopes is None else slopes[some]
            room = room_for_bias(queries, slopes)
            keys, values = cache.gather(self.layer, query, new, some, room)
            out[:, some] = attend(query[:, some], keys, values, slopes=biases)

    def _slopes(self, like: Tensor) -> Tensor | None:
        return slopes_on(self.heads, like.device) if self.alibi else None

    def _attend_newest(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: Rotary, batch: Batch
    ) -> Tensor:
        out = attend_newest(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            batch.paged(key),
            self.layer,
            slopes=self._slopes(query),
            angles=rotary and (rotary[0][0], rotary[1][0]),
        )
        return out.transpose(0, 1)[None]


class BaichuanDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """One attention block and one MLP block around the residual stream."""

    def __init__(self, config: BaichuanConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | Segments | None = None,
        rotary: Rotary = None,
        cache: Cache | Batch | None = None,
        wanted: list[int] | None = None,
    ) -> Tensor:
        """Map x [batch, positions, hidden] to the same shape, or to the rows `wanted` alone."""
        attention, mlp = self.self_attn, self.mlp
        normed, norm = normalized(self.input_layernorm, (attention.W_pack,), x)
        x = attention(normed, x, norm, mask, rotary, cache, wanted)
        normed, norm = normalized(self.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), x)
        return cast(Tensor, mlp(normed, x, norm))
