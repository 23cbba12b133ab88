"""`baichuan quantize`: a checkpoint on disk to a smaller one, with a bar."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.rewrite import refuse_existing
from baichuan.hub import local_directory
from baichuan.language import translate
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme


def run_quantize(source: str, target: Path, bits: int, group_size: int | None) -> None:
    """Quantize and say what came out; interrupted, say how to go on."""
    plan = Plan(Scheme.of_bits(bits, group_size))
    refuse_existing(target)  # before anything is fetched
    directory = local_directory(source)
    notes = Console(stderr=True)
    columns = (TextColumn("int{task.fields[bits]}"), BarColumn(), TaskProgressColumn())
    bar = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=notes)
    task = bar.add_task("", total=None, bits=bits)
    with ExitStack() as drawn:

        def advance(done: int, total: int) -> None:
            if not done:  # all is checked
                drawn.enter_context(bar)
            bar.update(task, completed=done, total=total)

        try:
            quantize_checkpoint(directory, target, plan, advance)
        except KeyboardInterrupt:
            drawn.close()
            notes.print(translate("stopped; the same command goes on from here."))
            raise
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e9:.2f} GB")
