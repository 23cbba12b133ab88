"""What GGUF calls a Baichuan network: its architecture, its settings, its tensors.

llama.cpp gives a file of the architecture "baichuan" ALiBi with 40 layers, RoPE with 32, and with
any other number neither. It has both kinds of network, with any number of layers, under two other
names. A file of ours says by a key of its own which kind it is. Knows no weight and no tokenizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baichuan.checkpoint.gguf.container import GgufWeights
from baichuan.errors import CheckpointError
from baichuan.model.configuration import BaichuanConfig

#: In a file of ours "alibi" or "rope", whatever its architecture.
POSITIONS = "baichuan.position_embedding"
#: Layers with which llama.cpp runs the architecture "baichuan" rightly, and the same network's name
#: with any other number.
_KINDS = {"alibi": (40, "refact"), "rope": (32, "llama")}
_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": ("attn_norm",),
    "self_attn.W_pack": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
}


def tensor_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Map each tensor of a network to the one or three (queries, keys, values) that GGUF has."""
    names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in _WHOLE.items()}
    for i in range(layers):
        for ours, several in _LAYER.items():
            names[f"model.layers.{i}.{ours}"] = tuple(f"blk.{i}.{theirs}" for theirs in several)
    return {
        f"{ours}.weight": tuple(f"{theirs}.weight" for theirs in several)
        for ours, several in names.items()
    }


def to_pairs(rows: Tensor, heads: int) -> Tensor:
    """Order the rows of queries or keys as llama.cpp's RoPE takes them: a pair side by side.

    Args:
        rows: [heads x head_dim, ...], the two numbers of a pair half a head apart.
    """
    return _swapped(rows, heads, (2, -1))


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """Undo `to_pairs`."""
    return _swapped(rows, heads, (-1, 2))


def _swapped(rows: Tensor, heads: int, split: tuple[int, int]) -> Tensor:
    if len(rows) // heads % 2:  # no pairs; ALiBi needs none
        return rows
    return rows.reshape(heads, *split, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def architecture(config: BaichuanConfig) -> str:
    """Name the architecture under which llama.cpp runs a network rightly."""
    assert config.position_embedding is not None, "__post_init__ sets it"
    layers, otherwise = _KINDS[config.position_embedding]
    return "baichuan" if config.num_hidden_layers == layers else otherwise


def to_settings(config: BaichuanConfig) -> dict[str, int | float | str]:
    """Give the settings that llama.cpp needs of a network."""
    family = architecture(config)
    settings: dict[str, int | float | str] = {
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    named = {f"{family}.{name}": value for name, value in settings.items()}
    return {**named, POSITIONS: str(config.position_embedding)}


def to_config(weights: GgufWeights, dtype: torch.dtype) -> BaichuanConfig:
    """Give the configuration of a GGUF file's network; sizes are those of its tensors.

    Args:
        weights: the file.
        dtype: of the weights as they will be saved.

    Raises:
        CheckpointError: another network, a setting is missing, or a value cannot be.
    """
    family = _family(weights)
    layers = _number(weights, f"{family}.block_count", int)
    inner = weights.stored.get(f"blk.{layers - 1}.ffn_gate.weight")
    if inner is None:
        raise _wrong(weights, f"{family}.block_count")
    heads = _number(weights, f"{family}.attention.head_count", int)
    if _number(weights, f"{family}.attention.head_count_kv", int, heads) != heads:
        raise _wrong(weights, f"{family}.attention.head_count_kv")
    positions = _positions(weights, layers)
    length = "model_max_length" if positions == "alibi" else "max_position_embeddings"
    tokens = {
        f"{name}_token_id": _number(weights, f"tokenizer.ggml.{theirs}_token_id", int, default)
        for name, theirs, default in (("bos", "bos", 1), ("eos", "eos", 2), ("pad", "padding", 0))
    }
    embedding = weights.stored["token_embd.weight"].shape
    for name in ("bos", "eos"):  # a padding that is no token, 4294967295, is ignored
        if not 0 <= tokens[f"{name}_token_id"] < embedding[0]:
            raise _wrong(weights, f"tokenizer.ggml.{name}_token_id")
    fields = {
        "architectures": ["BaichuanForCausalLM" if positions == "alibi" else "BaiChuanForCausalLM"],
        "position_embedding": positions,
        "vocab_size": embedding[0],
        "hidden_size": embedding[-1],
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        length: _number(weights, f"{family}.context_length", int),
        "rope_theta": _number(weights, f"{family}.rope.freq_base", float, 10_000.0),
        "rms_norm_eps": _number(weights, f"{family}.attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in weights.stored,
        "dtype": dtype,
        **tokens,
    }
    config: BaichuanConfig = BaichuanConfig.from_dict(fields)
    return config


def _family(weights: GgufWeights) -> str:
    """Name the architecture, having made sure that the file holds a whole Baichuan network."""
    settings = weights.settings
    family = settings.get("general.architecture")
    known = ["baichuan", *(name for _, name in _KINDS.values() if POSITIONS in settings)]
    if family not in known:
        raise CheckpointError(
            "{path} holds no Baichuan network: its architecture is {family!r}. This package runs "
            "'baichuan', and what `baichuan convert` wrote.",
            path=weights.path,
            family=family,
        )
    if settings.get("split.count", 1) > 1:
        raise CheckpointError(
            "{path} is one of {count} parts. Join them first: llama-gguf-split --merge",
            path=weights.path,
            count=settings["split.count"],
        )
    if "token_embd.weight" not in weights.stored:
        raise CheckpointError(
            "{path} holds a vocabulary or an adapter, but no network. Give a file with weights.",
            path=weights.path,
        )
    return str(family)


def _positions(weights: GgufWeights, layers: int) -> str:
    stated = weights.settings.get(POSITIONS)
    if isinstance(stated, str) and stated in _KINDS:
        return stated
    for positions, (count, _) in _KINDS.items():
        if layers == count:
            return positions
    raise CheckpointError(
        "{path} has {layers} layers: GGUF says by their number whether a Baichuan network is a 13B "
        "(40) or a 7B (32).",
        path=weights.path,
        layers=layers,
    )


def _number(weights: GgufWeights, key: str, kind: type, default: Any = None) -> Any:
    """Give a setting that must be a number, or the default where there is none."""
    value = weights.settings.get(key, default)
    if not isinstance(value, (int, kind)) or isinstance(value, bool):
        raise _wrong(weights, key)
    return value


def _wrong(weights: GgufWeights, key: str) -> CheckpointError:
    return CheckpointError(
        "{path} cannot be used: its {key} is {value!r}. Fetch the file again, or one that "
        "llama.cpp runs.",
        path=weights.path,
        key=key,
        value=weights.settings.get(key),
    )
