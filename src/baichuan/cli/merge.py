"""`baichuan merge`: an adapter and a checkpoint to a checkpoint, with a bar."""

from __future__ import annotations

from pathlib import Path

from baichuan.checkpoint.load import base_of_adapter
from baichuan.checkpoint.unfinished import check_target
from baichuan.cli.rewriting import watched
from baichuan.hub import local_directory
from baichuan.language import translate


def run_merge(adapter: Path, target: Path, model: str | None) -> None:
    """Merge and say what came out; interrupted, say how to go on."""
    base = base_of_adapter(adapter) if model is None else model
    from baichuan.checkpoint.merge import merge_adapter  # needs peft

    check_target(target)  # before anything is fetched
    directory = local_directory(base)
    with watched(translate("merging")) as advance:
        merge_adapter(directory, adapter, target, advance)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e9:.2f} GB")
