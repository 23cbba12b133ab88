"""Networks of ours as GGUF files and back, and what llama.cpp makes of them: rounding and logits.

Needs the packages `gguf` and `llama-cpp-python`. Used to judge our rounding beside llama.cpp's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.model.configuration import BaichuanConfig

#: llama.cpp's K formats take rows of whole super-blocks; other rows fall back to other formats.
SUPER_BLOCK = 256

_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FTYPES = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}

State = dict[str, Tensor]


@llama_cpp.llama_log_callback  # type: ignore[misc]  # untyped
def _quiet(level: int, text: bytes, data: Any) -> None:
    """Say nothing: llama.cpp reports hundreds of lines for each file."""


llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())


def network_weights(tensors: State, layers: int, heads: int, kv_heads: int) -> State:
    """Give a LLaMA GGUF's tensors (float, by their GGUF names) under the names of Baichuan-7B.

    Key/value heads are repeated for the query heads that share them, q, k and v are fused, and
    llama.cpp's order of the rows of q and k (pairs of RoPE side by side) becomes ours (halves).
    Without a head of its own the head is a copy of the embedding.
    """
    state = {ours: tensors.get(theirs, tensors["token_embd"]) for ours, theirs in _WHOLE.items()}
    for i in range(layers):
        block = f"blk.{i}."
        for ours, theirs in _LAYER.items():
            state[f"model.layers.{i}.{ours}"] = tensors[block + theirs]
        parts = [
            _halves(tensors[block + "attn_q"], heads),
            _repeated(_halves(tensors[block + "attn_k"], kv_heads), heads, kv_heads),
            _repeated(tensors[block + "attn_v"], heads, kv_heads),
        ]
        state[f"model.layers.{i}.self_attn.W_pack"] = torch.cat(parts)
    return {f"{name}.weight": tensor for name, tensor in state.items()}


def _halves(weight: Tensor, heads: int) -> Tensor:
    rows, columns = weight.shape
    return weight.view(heads, -1, 2, columns).transpose(1, 2).reshape(rows, columns)


def _pairs(weight: Tensor, heads: int) -> Tensor:
    rows, columns = weight.shape
    return weight.view(heads, 2, -1, columns).transpose(1, 2).reshape(rows, columns)


def _repeated(weight: Tensor, heads: int, kv_heads: int) -> Tensor:
    split = weight.view(kv_heads, -1, weight.shape[1])
    return split.repeat_interleave(heads // kv_heads, 0).reshape(-1, weight.shape[1])


def _gguf_tensors(state: State, config: BaichuanConfig) -> State:
    """Undo `network_weights`, with as many key/value heads as query heads."""
    tensors = {theirs: state[f"{ours}.weight"] for ours, theirs in _WHOLE.items()}
    for i in range(config.num_hidden_layers):
        block, layer = f"blk.{i}.", f"model.layers.{i}."
        for ours, theirs in _LAYER.items():
            tensors[block + theirs] = state[f"{layer}{ours}.weight"]
        query, key, value = state[f"{layer}self_attn.W_pack.weight"].chunk(3)
        heads = config.num_attention_heads
        tensors[block + "attn_q"] = _pairs(query, heads)
        tensors[block + "attn_k"] = _pairs(key, heads)
        tensors[block + "attn_v"] = value
    return tensors


def read_gguf(path: Path) -> tuple[State, dict[str, Any], dict[str, str]]:
    """Read a GGUF: tensors in float32 by name (without ".weight"), metadata, format by name."""
    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tensors, formats = {}, {}
    for tensor in reader.tensors:
        name = tensor.name.removesuffix(".weight")
        tensors[name] = torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
        formats[name] = tensor.tensor_type.name
    return tensors, facts, formats


def write_gguf(path: Path, state: State, config: BaichuanConfig, *, padded: bool = False) -> None:
    """Write a network in float32 as a GGUF of LLaMA's architecture, without a vocabulary.

    Args:
        padded: fill the rows of every matrix with zeros up to whole super-blocks. Such a file
            cannot run; it shows how wider networks, whose rows are whole, are rounded.
    """
    hidden = config.hidden_size + (-config.hidden_size % SUPER_BLOCK if padded else 0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _gguf_tensors(state, config).items():
        if padded and tensor.ndim == 2:
            tensor = F.pad(tensor, (0, -tensor.shape[1] % SUPER_BLOCK))
        writer.add_tensor(f"{name}.weight", tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Let llama.cpp quantize a GGUF to "Q8_0", "Q4_0" or "Q4_K_M"; the embedding stays float32."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = _FTYPES[kind]
    settings.token_embedding_type = int(gguf.GGMLQuantizationType.F32)
    settings.nthread = torch.get_num_threads()
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(settings)
    )
    if failed:
        raise RuntimeError(f"llama.cpp could not quantize {source} to {kind}.")


def rounded_weights(path: Path, config: BaichuanConfig) -> tuple[State, float, dict[str, int]]:
    """Read what llama.cpp rounded, for our network.

    Returns:
        The state; stored bits per weight of linear layers and head; matrices per format.
    """
    tensors, _, formats = read_gguf(path)
    shapes = _gguf_shapes(config)
    bits, weights, counts = 0.0, 0, dict[str, int]()
    for name, (rows, columns) in shapes.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[formats[name]]]
        bits += rows * columns * size * 8 / block
        weights += rows * columns
        counts[formats[name]] = counts.get(formats[name], 0) + 1
    tensors = {
        name: tensor[..., : shapes[name][1] if name in shapes else config.hidden_size]
        for name, tensor in tensors.items()
    }
    heads = config.num_attention_heads
    state = network_weights(tensors, config.num_hidden_layers, heads, heads)
    return state, bits / weights, counts


def _gguf_shapes(config: BaichuanConfig) -> dict[str, tuple[int, int]]:
    """Give [rows, columns] of each matrix that is multiplied with, by its GGUF name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {"output": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (hidden, hidden)
        shapes[f"blk.{i}.ffn_gate"] = shapes[f"blk.{i}.ffn_up"] = (inner, hidden)
        shapes[f"blk.{i}.ffn_down"] = (hidden, inner)
    return shapes


class Runner:
    """A GGUF in llama.cpp, for logits of rows of ids. Its cache is float32, as ours."""

    def __init__(self, model: Any, length: int) -> None:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = length
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.type_k = settings.type_v = int(gguf.GGMLQuantizationType.F32)
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.length = length
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.context = llama_cpp.llama_init_from_model(model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context.")
        self.batch = llama_cpp.llama_batch_init(length, 0, 1)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Give float32 [positions, vocabulary] for one row of at most `length` ids."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            self.batch.token[place], self.batch.pos[place] = token, place
            self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, 0
            self.batch.logits[place] = 1
        if llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError("llama.cpp could not run the ids.")
        pointer = llama_cpp.llama_get_logits(self.context)
        shape = (len(ids), self.vocabulary)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=shape).copy())

    def close(self) -> None:
        """Give the memory back."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)


@contextmanager
def opened(path: Path, *, vocabulary_only: bool = False) -> Iterator[Any]:
    """Open a GGUF in llama.cpp, on the CPU."""
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only, settings.n_gpu_layers = vocabulary_only, 0
    # Repacked weights are for speed alone, and AMX's crash in a process that has torch's OpenMP.
    settings.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise RuntimeError(f"llama.cpp could not open {path}.")
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


@contextmanager
def running(path: Path, length: int) -> Iterator[Runner]:
    """Run a GGUF on rows of at most `length` ids."""
    with opened(path) as model:
        runner = Runner(model, length)
        try:
            yield runner
        finally:
            runner.close()


def tokenize(path: Path, text: str) -> list[int]:
    """Turn text into ids with the vocabulary of a GGUF; special tokens in the text stay text."""
    raw = text.encode()
    room = len(raw) + 16
    ids = (llama_cpp.llama_token * room)()
    with opened(path, vocabulary_only=True) as model:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, room, False, False)
    return list(ids[:count])
