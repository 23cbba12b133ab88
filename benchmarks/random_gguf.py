"""Writes a checkpoint of benchmarks/random_checkpoint.py as a GGUF file, for llama.cpp to run.

    python benchmarks/random_gguf.py CHECKPOINT FILE --type q4_0

Needs numpy and the package `gguf`; no torch. The checkpoint is read tensor by tensor, so memory
holds one matrix. There is no tokenizer in the file unless `--vocabulary` puts a made-up one there,
which a server needs; prompts are token ids.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from multiprocessing.pool import Pool as Processes
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize
from tqdm import tqdm
from workers.vocabulary import pieces

#: llama.cpp gives ALiBi to a Baichuan network of so many layers alone. Its "refact" is the same
#: network (RMSNorm, SwiGLU, ALiBi) with any number.
_ALIBI_LAYERS = 40
#: Rows that one process rounds at a time.
_PART_ROWS = 1024
_TYPES = {"f32": Type.F32, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
_NAMES = {
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Source:
    """Rows of a bfloat16 tensor in a safetensors file.

    Attributes:
        file: of the tensor.
        offset: bytes from the file's start to the first row.
        shape: [rows, columns], or [columns] of a norm.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]

    def rows(self, first: int, count: int) -> Source:
        """Give a part of the rows."""
        count = min(count, self.shape[0] - first)
        bytes_before = 2 * first * int(np.prod(self.shape[1:]))
        return Source(self.file, self.offset + bytes_before, (count, *self.shape[1:]))

    def read(self) -> np.ndarray[Any, Any]:
        """Give the numbers as float32."""
        count = int(np.prod(self.shape))
        halves = np.fromfile(self.file, dtype=np.uint16, count=count, offset=self.offset)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="directory of bfloat16 safetensors")
    parser.add_argument("file", type=Path, help="to write; left as it is if it exists")
    parser.add_argument("--type", choices=_TYPES, default="q4_0", help="of the matrices")
    parser.add_argument("--vocabulary", action="store_true", help="add a made-up vocabulary")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not arguments.file.exists():
        kind = _TYPES[arguments.type]
        write_gguf(
            arguments.checkpoint, arguments.file, kind, arguments.processes, arguments.vocabulary
        )


def write_gguf(
    checkpoint: Path, file: Path, kind: Type, processes: int, vocabulary: bool = False
) -> None:
    """Write the whole file beside its name, then rename it.

    Args:
        checkpoint: directory with config.json and shards.
        file: to write.
        kind: of the matrices; the head is never less than Q8_0, norms are float32.
        processes: that round at the same time.
        vocabulary: whether to add one.

    Raises:
        SystemExit: not bfloat16.
    """
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    tensors = dict(_tensors(_sources(checkpoint), config))
    kinds = {name: _kind_of(name, source, kind) for name, source in tensors.items()}
    partial = file.with_name(f"{file.name}.partial")
    same = config["num_hidden_layers"] == _ALIBI_LAYERS
    writer = GGUFWriter(partial, "baichuan" if same else "refact")
    _add_settings(writer, config)
    if vocabulary:
        _add_vocabulary(writer, config["vocab_size"])
    else:
        writer.add_tokenizer_model("none")
    for name, source in tensors.items():
        shape = quant_shape_to_byte_shape(source.shape, kinds[name])
        # The writer takes shapes in bytes with uint8, and bytes of a float32 are not rounded.
        plain = kinds[name] == Type.F32
        dtype = np.dtype(np.float32 if plain else np.uint8)
        size = int(np.prod(shape))
        writer.add_tensor_info(name, source.shape if plain else shape, dtype, size, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(int(np.prod(source.shape)) for source in tensors.values())
    with Pool(processes) as pool, tqdm(total=total, unit="weight", unit_scale=True) as bar:
        for name, source in tensors.items():
            writer.write_tensor_data(_rounded(source, kinds[name], pool))
            bar.update(int(np.prod(source.shape)))
    writer.close()
    partial.replace(file)


def _sources(checkpoint: Path) -> dict[str, Source]:
    """Find every tensor of the checkpoint by the headers of its files."""
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{file} holds {name} in {entry['dtype']}; needed is BF16.")
            begin = 8 + length + entry["data_offsets"][0]
            found[name] = Source(file, begin, tuple(entry["shape"]))
    return found


def _tensors(sources: dict[str, Source], config: dict[str, Any]) -> Iterator[tuple[str, Source]]:
    """Give each tensor under GGUF's name, q, k and v apart."""
    hidden = config["hidden_size"]
    yield "token_embd.weight", sources["model.embed_tokens.weight"]
    for layer in range(config["num_hidden_layers"]):
        packed = sources[f"model.layers.{layer}.self_attn.W_pack.weight"]
        for number, letter in enumerate("qkv"):
            yield f"blk.{layer}.attn_{letter}.weight", packed.rows(number * hidden, hidden)
        for ours, theirs in _NAMES.items():
            yield f"blk.{layer}.{theirs}.weight", sources[f"model.layers.{layer}.{ours}.weight"]
    yield "output_norm.weight", sources["model.norm.weight"]
    yield "output.weight", sources["lm_head.weight"]


def _kind_of(name: str, source: Source, kind: Type) -> Type:
    if len(source.shape) == 1:
        return Type.F32
    return Type.Q8_0 if name == "output.weight" and kind == Type.Q4_0 else kind


def _add_settings(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["model_max_length"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    texts, kinds = zip(*pieces(size), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _rounded(source: Source, kind: Type, pool: Processes) -> np.ndarray[Any, Any]:
    if len(source.shape) == 1:
        return source.read()
    starts = range(0, source.shape[0], _PART_ROWS)
    jobs = [(source.rows(first, _PART_ROWS), kind) for first in starts]
    return np.concatenate(pool.starmap(_round, jobs, chunksize=1))


def _round(source: Source, kind: Type) -> np.ndarray[Any, Any]:
    return quantize(source.read(), kind)


if __name__ == "__main__":
    main()
