"""`baichuan quantize`: a checkpoint on disk to a smaller one, with a bar."""

from __future__ import annotations

from pathlib import Path

from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.rewrite import refuse_existing
from baichuan.cli.rewriting import watched
from baichuan.hub import local_directory
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme


def run_quantize(source: str, target: Path, bits: int, group_size: int | None) -> None:
    """Quantize and say what came out; interrupted, say how to go on."""
    plan = Plan(Scheme.of_bits(bits, group_size))
    refuse_existing(target)  # before anything is fetched
    directory = local_directory(source)
    with watched(f"int{bits}") as advance:
        quantize_checkpoint(directory, target, plan, advance)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e9:.2f} GB")
