"""What GGUF calls a Baichuan network: its architecture, its settings, its tensors.

llama.cpp gives a file of the architecture "baichuan" ALiBi with 40 layers, RoPE with 32, and with
any other number neither. It has both kinds of network, with any number of layers, under two other
names. A file of ours says by a key of its own which kind it is. Knows no weight and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baichuan.checkpoint.gguf.container import GgufWeights
from baichuan.checkpoint.gguf.metadata import Metadata
from baichuan.errors import CheckpointError, UsageError
from baichuan.language import translate
from baichuan.model.configuration import BaichuanConfig

#: In a file of ours "alibi" or "rope", whatever its architecture.
POSITIONS = "baichuan.position_embedding"
#: Layers with which llama.cpp runs the architecture "baichuan" rightly, and the same network's name
#: with any other number.
_KINDS = {"alibi": (40, "refact"), "rope": (32, "llama")}
_EMBEDDING = "token_embd.weight"
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
    """Return the configuration of a GGUF file's network; sizes are those of its tensors.

    Args:
        weights: the file.
        dtype: of the weights as they will be saved.

    Raises:
        CheckpointError: another network, or metadata that are missing, of another type or range, or
            not those of the tensors.
    """
    family, metadata = _family(weights), weights.metadata
    embedding = weights.stored[_EMBEDDING].shape
    layers, inner = _layers(weights, family)
    vocabulary, hidden = embedding[0], embedding[-1]
    heads = metadata.integer(f"{family}.attention.head_count", 1, hidden)
    positions = _positions(weights, layers)
    _check_sizes(
        metadata,
        {
            f"{family}.embedding_length": hidden,
            f"{family}.feed_forward_length": inner,
            f"{family}.attention.head_count_kv": heads,
            f"{family}.attention.key_length": hidden // heads,
            f"{family}.attention.value_length": hidden // heads,
            f"{family}.rope.dimension_count": hidden // heads,
        },
    )
    if positions == "rope":
        _refuse_scaling(metadata, family)
    length = "model_max_length" if positions == "alibi" else "max_position_embeddings"
    fields = {
        "architectures": ["BaichuanForCausalLM" if positions == "alibi" else "BaiChuanForCausalLM"],
        "position_embedding": positions,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        length: metadata.integer(f"{family}.context_length", 1, 2**31 - 1),
        "rope_theta": metadata.number(f"{family}.rope.freq_base", 1, 1e30, 10_000.0),
        "rms_norm_eps": float(metadata.number(f"{family}.attention.layer_norm_rms_epsilon", 0, 1)),
        "tie_word_embeddings": "output.weight" not in weights.stored,
        "dtype": dtype,
        "bos_token_id": metadata.integer("tokenizer.ggml.bos_token_id", 0, vocabulary - 1, 1),
        "eos_token_id": metadata.integer("tokenizer.ggml.eos_token_id", 0, vocabulary - 1, 2),
        # Padding that is no token, 4294967295, is ignored.
        "pad_token_id": metadata.integer("tokenizer.ggml.padding_token_id", default=0),
    }
    try:
        return BaichuanConfig(**fields)
    except UsageError as error:
        raise CheckpointError(
            "{path} cannot be used: {why}", path=weights.path, why=error
        ) from error


def _family(weights: GgufWeights) -> str:
    """Return the architecture, having made sure that the file holds a whole Baichuan network."""
    metadata = weights.metadata
    parts = metadata.integer("split.count", 0, 2**16, 1)
    if parts > 1:
        raise CheckpointError(
            "{path} is one of {count} parts. Join them first: llama-gguf-split --merge",
            path=weights.path,
            count=parts,
        )
    family = metadata.string("general.architecture", "")
    known = ["baichuan", *(name for _, name in _KINDS.values() if POSITIONS in metadata)]
    if family not in known:
        raise CheckpointError(
            "{path} holds no Baichuan network: its architecture is {family!r}. This package runs "
            "'baichuan', and what `baichuan convert` wrote.",
            path=weights.path,
            family=family,
        )
    if _EMBEDDING not in weights.stored:
        raise CheckpointError(
            "{path} holds a vocabulary or an adapter, but no network. Give a file with weights.",
            path=weights.path,
        )
    return family


def _layers(weights: GgufWeights, family: str) -> tuple[int, int]:
    """Return the number of layers, all of which have tensors, and the rows of their products."""
    key = f"{family}.block_count"
    names = (name.split(".") for name in weights.stored if name.startswith("blk."))
    held = len({parts[1] for parts in names})
    layers = weights.metadata.integer(key, 1, max(1, held))
    inner = weights.stored.get(f"blk.{layers - 1}.ffn_gate.weight")
    if inner is None:
        raise weights.metadata.wrong(key, translate("the number of layers that have tensors"))
    return layers, inner.shape[0]


def _check_sizes(metadata: Metadata, sizes: Mapping[str, int]) -> None:
    """Check that the sizes in the metadata, where there are any, are those of the tensors.

    Raises:
        CheckpointError: names one that is not.
    """
    for key, size in sizes.items():
        if metadata.integer(key, default=size) != size:
            raise metadata.wrong(key, str(size))


def _refuse_scaling(metadata: Metadata, family: str) -> None:
    """Refuse a scaling of RoPE, which this package does not compute.

    Raises:
        CheckpointError: names the key that asks for it.
    """
    key = f"{family}.rope.scaling.type"
    if metadata.string(key, "none") not in ("none", "linear"):
        raise metadata.wrong(key, "'none'")
    for key in (f"{family}.rope.scaling.factor", f"{family}.rope.scale_linear"):
        if metadata.number(key, 0, 1e30, 1) not in (0, 1):
            raise metadata.wrong(key, "1")


def _positions(weights: GgufWeights, layers: int) -> str:
    stated = weights.metadata.string(POSITIONS, "")
    if stated in _KINDS:
        return stated
    if stated:
        raise weights.metadata.wrong(POSITIONS, " / ".join(_KINDS))
    for positions, (count, _) in _KINDS.items():
        if layers == count:
            return positions
    raise CheckpointError(
        "{path} has {layers} layers: GGUF says by their number whether a Baichuan network is a 13B "
        "(40) or a 7B (32).",
        path=weights.path,
        layers=layers,
    )
