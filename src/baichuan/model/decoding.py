"""A few tokens of each sequence through all decoder layers, as one call of the native kernels.

When decoding, a layer's work takes milliseconds, and what lies between its products (Python, torch,
waking threads) takes as long as a tenth of them. So the calls of all layers are prepared first and
then run by one team of threads. The result is the same, to the last bit, as that of the layers'
own `forward`, which runs wherever this does not apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from baichuan.engine.cache import Batch
from baichuan.kernels import native
from baichuan.kernels.ops import Norm, linear_call
from baichuan.kernels.paged import Angles, attend_call
from baichuan.model.attention import slopes_on
from baichuan.quant.linear import QuantizedLinear, is_hooked


def applies(layers: Iterable[Any], x: Tensor, batch: object) -> bool:
    """Say whether `decode` may run the layers: all plain and quantized, on a CPU, few tokens each.

    Args:
        layers: of layers.BaichuanDecoderLayer.
        x: [1, positions, hidden].
        batch: what the network was given as its cache.
    """
    return (
        isinstance(batch, Batch)
        and len(batch.newest) == x.shape[1]
        and not torch.is_grad_enabled()
        and is_exact(layers, x)
    )


def is_exact(layers: Iterable[Any], like: Tensor) -> bool:
    """Say whether native code runs all of the layers' work, so that no row depends on another.

    Args:
        layers: of layers.BaichuanDecoderLayer.
        like: of the dtype and on the device of the hidden states.
    """
    return (
        like.device.type == "cpu"
        and like.dtype in native.DTYPES
        and native.chosen() != native.TORCH
        and all(_plain(layer) for layer in layers)
    )


def decode(layers: Iterable[Any], x: Tensor, batch: Batch, angles: Angles | None) -> Tensor:
    """Run the layers; see `applies`.

    Args:
        x: [1, rows, hidden]; the rows are the batch's newest.
        angles: of RoPE, each [rows, head_dim / 2]; None under ALiBi.

    Returns:
        [1, rows, hidden].
    """
    calls: list[native.LinearCall | native.AttendCall] = []
    rows = x[0]
    for layer in layers:
        rows = _attention_block(layer, rows, batch, angles, calls)
        rows = _mlp_block(layer, rows, calls)
    native.run(calls)
    return rows[None]


def _attention_block(
    layer: Any, x: Tensor, batch: Batch, angles: Angles | None, calls: list[Any]
) -> Tensor:
    attention = layer.self_attn
    packed = linear_call(x, attention.W_pack.matrix, norm=_norm(layer.input_layernorm))
    # [rows, 3, heads, head_dim], as in BaichuanAttention.forward
    query, key, value = packed.result.view(len(x), 3, attention.heads, -1).unbind(1)
    mixed = attend_call(
        query,
        key,
        value,
        batch.paged(key[None].transpose(1, 2)),
        attention.layer,
        slopes=slopes_on(attention.heads, x.device) if attention.alibi else None,
        angles=angles,
    )
    out = linear_call(mixed.result.flatten(1), attention.o_proj.matrix, residual=x)
    calls += packed, mixed, out
    return out.result


def _mlp_block(layer: Any, x: Tensor, calls: list[Any]) -> Tensor:
    mlp, norm = layer.mlp, _norm(layer.post_attention_layernorm)
    inner = linear_call(x, mlp.gate_proj.matrix, up=mlp.up_proj.matrix, norm=norm)
    out = linear_call(inner.result, mlp.down_proj.matrix, residual=x)
    calls += inner, out
    return out.result


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.eps)


def _plain(layer: Any) -> bool:
    """Say whether nothing stands between this module and the layer's products.

    Adapters put other modules in place of linear ones; hooks (of accelerate's offloading, of users)
    want to see each module's input and output.
    """
    attention, mlp = layer.self_attn, layer.mlp
    linears = (attention.W_pack, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return (
        all(type(linear) is QuantizedLinear for linear in linears)
        and not any(is_hooked(module) for module in (layer, attention, mlp, *linears, *norms))
        and mlp.gate_proj.matrix.matches(mlp.up_proj.matrix)
    )
