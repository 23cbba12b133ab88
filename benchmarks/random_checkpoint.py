"""Writes a checkpoint of random weights at true size, one shard at a time.

    python benchmarks/random_checkpoint.py DIRECTORY --preset 13b [--layers N]

Speed and memory do not depend on what the weights say, so figures at full size need no download.
The weights are N(0, 0.02), as at initialisation, or random codes of a plan; peak memory is one
shard.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from baichuan.files import weights_by_umask
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.quantization import BaichuanQuantizationConfig
from baichuan.quant.plan import Plan, make_room

_SHARD_BYTES = 2_000_000_000
_SPARE_BYTES = 2_000_000_000


def write_random_checkpoint(
    directory: Path, config: BaichuanConfig, seed: int = 0, plan: Plan | None = None
) -> None:
    """Write config.json, shards and index; a finished directory is left as it is.

    Args:
        directory: to make.
        config: the network's shape.
        seed: of the weights.
        plan: quantized so, with random codes; None for bfloat16.

    Raises:
        SystemExit: the disk has too little room.
    """
    index = directory / "model.safetensors.index.json"
    if index.exists():
        return
    with torch.device("meta"):
        network = BaichuanForCausalLM(config).to(torch.bfloat16)
        if plan is not None:
            make_room(network, plan)
            config.quantization_config = BaichuanQuantizationConfig.of(plan)
        headers = dict(network.state_dict())
    total = sum(header.nbytes for header in headers.values())
    directory.mkdir(parents=True, exist_ok=True)
    _check_room(directory, total)
    generator = torch.Generator().manual_seed(seed)
    shards = list(_shards(headers))
    weight_map = {}
    for number, names in enumerate(tqdm(shards, unit="shard"), start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _random(headers[name], config, generator) for name in names}
        with weights_by_umask(directory):
            save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        tensors.clear()  # before the next shard is made
    config.architectures = config.architectures or ["BaichuanForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(directory)
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    partial = index.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(index)


def _check_room(directory: Path, total: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < total + _SPARE_BYTES:
        raise SystemExit(
            f"{directory} has {free / 1e9:.0f} GB free; the checkpoint needs {total / 1e9:.0f} GB. "
            "Choose another directory or fewer --layers."
        )


def _shards(headers: dict[str, Tensor]) -> Iterator[list[str]]:
    """Group names, in the network's order, into files of about `_SHARD_BYTES`."""
    names: list[str] = []
    size = 0
    for name, header in headers.items():
        if names and size + header.nbytes > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += header.nbytes
    yield names


def _random(header: Tensor, config: BaichuanConfig, generator: torch.Generator) -> Tensor:
    if header.ndim == 1:
        return torch.ones(header.shape, dtype=torch.bfloat16)  # a norm
    if header.dtype == torch.uint8:  # codes
        return torch.randint(0, 256, header.shape, dtype=torch.uint8, generator=generator)
    if header.ndim == 3:  # scales, with which codes are of about the size of weights
        return torch.full(header.shape, config.initializer_range / 8, dtype=torch.bfloat16)
    weight = torch.empty(header.shape, dtype=torch.bfloat16)
    for row in weight.split(1024):  # in parts: the float32 numbers are twice the size
        values = torch.randn(row.shape, generator=generator)
        row.copy_(values.mul_(config.initializer_range))
    return weight


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", default="13b", help="13b or 7b")
    parser.add_argument("--layers", type=int, help="fewer layers, each at full width")
    arguments = parser.parse_args()
    changes = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
    config = BaichuanConfig.preset(arguments.preset, **changes)
    write_random_checkpoint(arguments.directory, config)


if __name__ == "__main__":
    main()
