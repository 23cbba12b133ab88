"""The table of `baichuan train --plan`: what each GPU will hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from baichuan.language import phrase, translate

if TYPE_CHECKING:
    from baichuan.train.plan import Plan

_PARTS = {
    "weights": phrase("weights"),
    "gradients": phrase("gradients"),
    "optimizer": phrase("optimizer"),
    "activations": phrase("activations kept for the way back"),
    "layer": phrase("one layer on the way back"),
    "logits": phrase("logits and their gradients"),
    "context": phrase("driver and kernels"),
}


def print_plan(plan: Plan) -> None:
    """Print the parts and, what counts, the most at one moment."""
    title = translate(
        "{trained:,} of {all:,} weights learn, on {gpus} GPU(s) or processes",
        trained=plan.trained,
        all=plan.parameters,
        gpus=plan.gpus,
    )
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, text in _PARTS.items():
        if getattr(plan, name):
            table.add_row(translate(text), _gb(getattr(plan, name)))
    table.add_section()
    table.add_row(translate("most at one moment, on each"), _gb(plan.total), style="bold")
    if plan.host:
        table.add_row(translate("in the computer's memory, together"), _gb(plan.host))
    console = Console(highlight=False)
    console.print(table)
    if plan.fits is not None and plan.capacity is not None:
        console.print(_verdict(plan.fits, _gb(plan.capacity)), soft_wrap=True)


def _verdict(fits: bool, capacity: str) -> str:
    if fits:
        return translate("That fits into {capacity}.", capacity=capacity)
    return translate(
        "That is more than {capacity}. What helps: --gradient_checkpointing, a smaller "
        "--per_device_train_batch_size or --cutoff_len, ZeRO-3 or --fsdp on more GPUs, "
        "--finetuning_type lora, --bits 4.",
        capacity=capacity,
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
