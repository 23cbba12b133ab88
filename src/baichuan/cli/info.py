"""`baichuan info`: versions, devices, and the facts of a checkpoint."""

from __future__ import annotations

import os
import platform

import sentencepiece
import torch
import transformers
from rich.console import Console
from rich.table import Table

from baichuan.checkpoint.load import DEMO
from baichuan.hub import local_directory
from baichuan.model.configuration import BaichuanConfig
from baichuan.version import __version__
from baichuan.weights import WeightFiles


def run_info(name: str | None) -> None:
    """Print two tables: this installation, and the model."""
    console = Console()
    console.print(_table("Installation", _installation()))
    console.print(_table("Model", _model(name)))


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _installation() -> dict[str, str]:
    accelerator = torch.accelerator.current_accelerator()
    return {
        "baichuan": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentencepiece": sentencepiece.__version__,
        "device": "cpu" if accelerator is None else str(accelerator),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }


def _model(name: str | None) -> dict[str, str]:
    directory = local_directory(DEMO if name is None else name)
    config = BaichuanConfig.from_pretrained(directory)
    shapes = WeightFiles(directory).shapes
    return {
        "name": "demo (comes with the package)" if name is None else name,
        "parameters": f"{sum(_count(shape) for shape in shapes.values()):,}",
        "layers": str(config.num_hidden_layers),
        "hidden size": str(config.hidden_size),
        "heads": f"{config.num_attention_heads} x {config.head_dim}",
        "positions": str(config.position_embedding),
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context_length:,} tokens",
    }


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
