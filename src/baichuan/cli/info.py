"""`baichuan info`: versions, this machine, and the facts of a checkpoint."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil
import sentencepiece
import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baichuan.hub import DEMO, local_directory
from baichuan.kernels import native
from baichuan.language import translate
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import read_config
from baichuan.model.quantization import METHOD, BaichuanQuantizationConfig, describe
from baichuan.version import __version__
from baichuan.weights import WeightFiles

#: What makes matrix products quick, as Linux names it on x86 and on ARM.
_INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def run_info(name: str | None) -> None:
    """Print two tables: this installation, and the model.

    Raises:
        BaichuanError: there is no such checkpoint, or it is damaged.
    """
    console = Console(highlight=False)
    console.print(_table(translate("Installation"), _installation()))
    console.print(_table(translate("Model"), _model(name)))


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, Text(value))
    return table


def _installation() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "baichuan": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentencepiece": sentencepiece.__version__,
        translate("system"): f"{platform.system()} {platform.machine()}",
        translate("device"): _devices(),
        translate("memory"): translate(
            "{total}, {free} of it free", total=size(memory.total), free=size(memory.available)
        ),
        translate("threads"): translate(
            "{threads} of {processors} processors",
            threads=torch.get_num_threads(),
            processors=os.cpu_count(),
        ),
        translate("kernels"): translate(
            "{chosen} (this machine runs {available})",
            chosen=native.chosen(),
            available=", ".join(native.available()),
        ),
        "cpu": f"{torch.backends.cpu.get_cpu_capability()} ({', '.join(instruction_sets())})",
    }


def _devices() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    if accelerator.type != "cuda":
        return str(accelerator)
    cards = (torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count()))
    return "; ".join(f"{card.name}, {size(card.total_memory)}" for card in cards)


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Give the processor's instruction sets that matter here; Linux alone tells."""
    if not cpuinfo.is_file():
        return [translate("instruction sets not told by this system")]
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return [name for name in _INSTRUCTION_SETS if name in present] or [translate("none of note")]


def _model(name: str | None) -> dict[str, str]:
    directory = local_directory(DEMO if name is None else name)
    config = read_config(directory)
    weights = WeightFiles(directory)
    demo = translate("demo (small; comes with the package)")
    return {
        translate("name"): demo if name is None else name,
        translate("parameters"): f"{_parameters(config):,}",
        "dtype": _dtype(config, weights),
        translate("quantized"): _quantization(config),
        translate("weight files"): f"{len(weights.files)}, {size(_bytes(weights))}",
        translate("context"): translate("{length:,} tokens", length=config.context_length),
        translate("layers"): str(config.num_hidden_layers),
        translate("hidden size"): f"{config.hidden_size:,}",
        translate("heads"): f"{config.num_attention_heads} x {config.head_dim}",
        translate("positions"): str(config.position_embedding),
        translate("vocabulary"): f"{config.vocab_size:,}",
    }


def _parameters(config: BaichuanConfig) -> int:
    """Count the network's parameters, whatever the files hold of them in how many bits."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in BaichuanForCausalLM(config).parameters())


def _quantization(config: BaichuanConfig) -> str:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return translate("no")
    ours = settings.get("quant_method") == METHOD
    return describe(BaichuanQuantizationConfig(**settings) if ours else settings)


def _dtype(config: BaichuanConfig, weights: WeightFiles) -> str:
    """Say the type that config.json states, or where it states none that of the first tensor."""
    stated = config.dtype
    if stated is None:
        stated = next(tensor.dtype for _, tensor in weights.tensors())
    return str(stated).removeprefix("torch.")


def _bytes(weights: WeightFiles) -> int:
    return sum(file.path.stat().st_size for file in weights.files)


def size(count: float) -> str:
    """Write a number of bytes as people read it: `26.5 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
