"""Writes the package's model directory: weights in bfloat16 and the files of a published checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from texts import HERE
from training import read_checkpoint
from vocabulary import ASSISTANT, EOS, USER

from baichuan.files import weights_by_umask
from baichuan.model.configuration import BaichuanConfig

#: The package carries it, so it has to stay small.
MOST_BYTES = 20_000_000
_CARD = HERE / "card.md"


def export(checkpoint: Path, vocabulary: Path, directory: Path) -> None:
    """Write the directory file by file, each at one stroke; its Python files are not touched."""
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in read_checkpoint(checkpoint)["model"].items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / "partial"
    staging.mkdir(exist_ok=True)
    with weights_by_umask(staging):
        save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(vocabulary, staging / "tokenizer.model")
    shutil.copyfile(_CARD, staging / "README.md")
    for name, content in _settings().items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (staging / name).write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in staging.iterdir())
    assert size < MOST_BYTES, f"{size} bytes are more than {MOST_BYTES}"
    for path in staging.iterdir():
        os.replace(path, directory / path.name)
    staging.rmdir()
    print(f"{directory}: {size / 1e6:.1f} MB")


def _settings() -> dict[str, dict[str, Any]]:
    """The JSON files, with the fields that the published 13B's have."""
    config = BaichuanConfig.preset("demo")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    return {
        "config.json": {
            "architectures": ["BaichuanForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": EOS,
            "hidden_act": config.hidden_act,
            "hidden_size": config.hidden_size,
            "initializer_range": config.initializer_range,
            "intermediate_size": config.intermediate_size,
            "model_max_length": config.model_max_length,
            "model_type": config.model_type,
            "num_attention_heads": config.num_attention_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "pad_token_id": 0,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": config.vocab_size,
        },
        "generation_config.json": {
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": EOS,
            "user_token_id": USER,
            "assistant_token_id": ASSISTANT,
            "max_new_tokens": 256,
            "do_sample": False,
            "repetition_penalty": 1.0,
        },
        "special_tokens_map.json": {
            name: {"content": content, **flags} for name, content in special.items()
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.model_max_length,
            "sp_model_kwargs": {},
            "tokenizer_class": "BaichuanTokenizer",
            **{
                name: {"__type": "AddedToken", "content": content, **flags}
                for name, content in special.items()
            },
        },
    }
