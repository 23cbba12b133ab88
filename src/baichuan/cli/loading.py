"""Loading a model for a command: what the person waiting sees on stderr."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from baichuan.language import translate

if TYPE_CHECKING:
    from baichuan.model.network import BaichuanForCausalLM
    from baichuan.model.tokenizer import BaichuanTokenizer


def load_draft(
    name: str | None, tokenizer: BaichuanTokenizer, device: str | None
) -> BaichuanForCausalLM | None:
    """Load the draft model that --draft names, if it does; see `baichuan.checkpoint.load`."""
    if name is None:
        return None
    from baichuan.checkpoint import load

    return load.load_draft(name, tokenizer, device=device)


def load_model(name: str | None, **where: Any) -> tuple[BaichuanForCausalLM, BaichuanTokenizer]:
    """Load as `baichuan.load` does; quantizing shows a bar.

    Raises:
        BaichuanError: whatever `baichuan.load` finds wrong.
    """
    notes = Console(stderr=True)
    watched = sys.stderr.isatty()
    with notes.status(translate("starting")) if watched else nullcontext():
        # torch and transformers, which take seconds to import
        from baichuan.checkpoint.load import load
    if name is not None and watched:
        notes.print(translate("loading {name}", name=name), style="dim", markup=False)
    model, tokenizer = load(name, progress=watched, **where)
    if watched and _is_slow(model):
        notes.print(
            translate(
                "This processor is slow in bfloat16. Many times as fast: --bits 4 or --bits 8, or "
                "--dtype float32 in twice the memory."
            ),
            style="dim",
            markup=False,
        )
    return model, tokenizer


def model_name(name: str | None, adapter: Path | None) -> str:
    """Return what tables and files call a model."""
    if adapter is None:
        return name or "demo"
    from baichuan.checkpoint.load import base_of_adapter

    return f"{name or base_of_adapter(adapter)}+{adapter.resolve().name}"


def digests_of(model: Any, adapter: str | Path | None = None) -> dict[str, str | None]:
    """Compute the digests of a loaded model's files: `checkpoint`, and `adapter` or None.

    Args:
        model: of this package or of transformers.
        adapter: directory of its adapter; anything that is none is ignored.
    """
    from baichuan.digest import checkpoint_digest

    notes = Console(stderr=True)
    said = translate("computing the SHA-256 of the checkpoint")
    with notes.status(said) if sys.stderr.isatty() else nullcontext():
        directory = _directory_with("config.json", model.name_or_path)
        added = _directory_with("adapter_config.json", str(adapter)) if adapter else None
        return {
            "checkpoint": checkpoint_digest(directory or model.name_or_path),
            "adapter": checkpoint_digest(added) if added else None,
        }


def _directory_with(file: str, name: str) -> Path | None:
    """Find a file of a directory, or of a hub name that was loaded before; None without it."""
    from transformers.utils import cached_file

    found = cached_file(
        name, file, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return Path(found).parent if found else None


def _is_slow(model: BaichuanForCausalLM) -> bool:
    import torch

    from baichuan.kernels.native import bfloat16_is_slow

    quantized = getattr(model.config, "quantization_config", None) is not None
    in_bfloat16 = model.device.type == "cpu" and model.dtype == torch.bfloat16
    return in_bfloat16 and not quantized and bfloat16_is_slow()
