"""A Baichuan-13B network as it was published in 2023, for comparison: what training cost then.

Written from the description of its arithmetic: ALiBi as a [batch, heads, L, L] tensor added to all
scores, softmax over them, padded batches, and the logits of all positions in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from baichuan.model.attention import alibi_slopes
from baichuan.model.configuration import BaichuanConfig


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in float32."""
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(self.weight.dtype)


class Attention(nn.Module):
    """All scores of all heads at once."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.head_dim
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend; mask is what is added to the scores, [batch, heads, L, L]."""
        batch, length, _ = x.shape
        packed = self.W_pack(x).view(batch, length, 3, self.heads, self.width)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(self.width) + mask
        scores = torch.max(scores, torch.tensor(torch.finfo(scores.dtype).min))
        out = torch.matmul(F.softmax(scores, dim=-1).to(value.dtype), value)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """The gated MLP."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A decoder layer."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config), Block(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x [batch, L, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and norm, under the published names."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Give hidden states [batch, L, hidden]."""
        x = self.embed_tokens(ids)
        mask = self._mask(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def _mask(self, attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
        length = attention_mask.shape[1]
        slopes = torch.tensor(alibi_slopes(self.heads))[:, None, None]
        bias = slopes * torch.arange(length).expand(1, length, length)
        bias = bias + torch.full((length, length), float("-inf")).triu(1)
        hidden = (attention_mask == 0)[:, None, None, :]
        return bias[None].masked_fill(hidden, torch.finfo(dtype).min).to(dtype)


class Published(PreTrainedModel):  # type: ignore[misc]  # untyped base
    """The network with its head and loss."""

    config_class = BaichuanConfig
    base_model_prefix = "model"

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any
    ) -> dict[str, Tensor]:
        """Give the loss, and the logits of all positions."""
        logits = self.lm_head(self.model(input_ids, attention_mask)).float()
        shifted = logits[:, :-1].flatten(0, 1)
        return {"loss": F.cross_entropy(shifted, labels[:, 1:].flatten()), "logits": logits}
