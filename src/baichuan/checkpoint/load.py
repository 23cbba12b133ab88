"""From a name to a model and its tokenizer; the one loader behind every command.

Chooses dtype and device where the caller does not. Knows no format (weights.py) and no layer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from baichuan.errors import CheckpointError, UsageError
from baichuan.hub import local_directory
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.registration import register
from baichuan.model.tokenizer import BaichuanTokenizer

#: The small model that travels with the package.
DEMO = Path(__file__).parents[1] / "demo"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    **hub: Any,
) -> tuple[BaichuanForCausalLM, BaichuanTokenizer]:
    """Load a model and its tokenizer.

    Args:
        name_or_path: a checkpoint's directory, a hub name, or None for the demo model.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype. By default the checkpoint's
            own, but float32 for the demo model, which is too small to gain from less.
        device: `"cpu"`, `"cuda"`, `"auto"` (spread over what there is), ...; by default `"auto"`
            where there is an accelerator and `"cpu"` elsewhere.
        hub: `revision`, `token`, `cache_dir`, `local_files_only`, ... as transformers takes them.

    Raises:
        CheckpointError: the files are incomplete, damaged, unsafe, or of another model.
        DownloadError: the model is neither here nor to be had from the hub.
        UsageError: a dtype that there is not.
    """
    register()
    demo = name_or_path is None
    directory = local_directory(DEMO if name_or_path is None else name_or_path, **hub)
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory} has no config.json; give the directory of a checkpoint "
            "(config.json, tokenizer.model and the weights)."
        )
    if dtype is None:
        dtype = "float32" if demo else "auto"
    if device is None:
        device = "auto" if torch.accelerator.is_available() else "cpu"
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    model = BaichuanForCausalLM.from_pretrained(directory, dtype=_dtype(dtype), device_map=device)
    return model, tokenizer


def _dtype(given: str | torch.dtype) -> str | torch.dtype:
    if isinstance(given, torch.dtype) or given == "auto":
        return given
    if given not in _DTYPES:
        raise UsageError(f"dtype is {given!r}; allowed is one of {', '.join(_DTYPES)} or 'auto'.")
    return _DTYPES[given]
