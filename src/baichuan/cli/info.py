"""`baichuan info`: versions, this machine, and the facts of a checkpoint."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil
import sentencepiece
import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baichuan.cli.markdown import visible
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


def run_info(name: str | None, as_json: bool = False) -> None:
    """Print two tables, this installation and the model; or both as one JSON object.

    Raises:
        BaichuanError: there is no such checkpoint, or it is damaged.
    """
    installation, model = _installation(), _model(name)
    if as_json:
        print(json.dumps({"installation": installation, "model": model}, indent=2))
        return
    console = Console(highlight=False)
    console.print(_table(translate("Installation"), _installation_rows(installation)))
    console.print(_table(translate("Model"), _model_rows(model)))


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, Text(visible(value)))
    return table


def _installation() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "baichuan": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentencepiece": sentencepiece.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "devices": _devices(),
        "memory": {"total": memory.total, "available": memory.available},
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "kernels": {"chosen": native.chosen(), "available": list(native.available())},
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "instruction_sets": instruction_sets(),
        },
    }


def _installation_rows(facts: dict[str, Any]) -> dict[str, str]:
    memory, kernels, cpu = facts["memory"], facts["kernels"], facts["cpu"]
    versions = ("baichuan", "python", "torch", "transformers", "sentencepiece")
    devices = (
        f"{device['name']}, {size(device['memory'])}" if "memory" in device else device["name"]
        for device in facts["devices"]
    )
    return {
        **{name: facts[name] for name in versions},
        translate("system"): facts["system"],
        translate("device"): "; ".join(devices),
        translate("memory"): translate(
            "{total}, {free} of it free",
            total=size(memory["total"]),
            free=size(memory["available"]),
        ),
        translate("threads"): translate(
            "{threads} of {processors} processors",
            threads=facts["threads"],
            processors=facts["processors"],
        ),
        translate("kernels"): translate(
            "{chosen} (this machine runs {available})",
            chosen=kernels["chosen"],
            available=", ".join(kernels["available"]),
        ),
        "cpu": f"{cpu['capability']} ({_list_of_sets(cpu['instruction_sets'])})",
    }


def _devices() -> list[dict[str, Any]]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type != "cuda":
        return [{"name": str(accelerator or "cpu")}]
    cards = (torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count()))
    return [{"name": card.name, "memory": card.total_memory} for card in cards]


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str] | None:
    """Return the processor's instruction sets that matter here; None where only Linux could say."""
    if not cpuinfo.is_file():
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return [name for name in _INSTRUCTION_SETS if name in present]


def _list_of_sets(names: list[str] | None) -> str:
    if names is None:
        return translate("instruction sets not told by this system")
    return ", ".join(names) or translate("none of note")


def _model(name: str | None) -> dict[str, Any]:
    directory = local_directory(DEMO if name is None else name)
    config = read_config(directory)
    weights = WeightFiles(directory)
    return {
        "name": name or "demo",
        "directory": str(directory),
        "parameters": _parameters(config),
        "dtype": _dtype(config, weights),
        "quantized": _quantization(config),
        "weight_files": len(weights.files),
        "weight_bytes": sum(file.path.stat().st_size for file in weights.files),
        "context": config.context_length,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "head_size": config.head_dim,
        "positions": str(config.position_embedding),
        "vocabulary": config.vocab_size,
    }


def _model_rows(facts: dict[str, Any]) -> dict[str, str]:
    is_demo = Path(facts["directory"]) == DEMO
    name = translate("demo (small; comes with the package)") if is_demo else facts["name"]
    return {
        translate("name"): name,
        translate("parameters"): f"{facts['parameters']:,}",
        "dtype": facts["dtype"],
        translate("quantized"): facts["quantized"] or translate("no"),
        translate("weight files"): f"{facts['weight_files']}, {size(facts['weight_bytes'])}",
        translate("context"): translate("{length:,} tokens", length=facts["context"]),
        translate("layers"): str(facts["layers"]),
        translate("hidden size"): f"{facts['hidden_size']:,}",
        translate("heads"): f"{facts['heads']} x {facts['head_size']}",
        translate("positions"): facts["positions"],
        translate("vocabulary"): f"{facts['vocabulary']:,}",
    }


def _parameters(config: BaichuanConfig) -> int:
    """Count the network's parameters, whatever the files hold of them in how many bits."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in BaichuanForCausalLM(config).parameters())


def _quantization(config: BaichuanConfig) -> str | None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    ours = settings.get("quant_method") == METHOD
    return describe(BaichuanQuantizationConfig(**settings) if ours else settings)


def _dtype(config: BaichuanConfig, weights: WeightFiles) -> str:
    """Say the type that config.json states, or where it states none that of the first tensor."""
    stated = config.dtype
    if stated is None:
        stated = next((tensor.dtype for tensor in weights.headers.values()), "-")
    return str(stated).removeprefix("torch.")


def size(count: float) -> str:
    """Write a number of bytes as people read it: `26.5 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
