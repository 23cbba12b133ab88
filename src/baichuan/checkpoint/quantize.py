"""Quantizing a checkpoint on disk, tensor by tensor or, by texts (calibrate.py), layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from baichuan.checkpoint.calibrate import Calibrated
from baichuan.checkpoint.rewrite import Change, Part, Progress, rewrite_checkpoint
from baichuan.checkpoint.unfinished import check_target
from baichuan.checkpoint.walk import parts
from baichuan.errors import CheckpointError, UsageError
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import check_tensors, read_config, refuse_quantized
from baichuan.model.quantization import BaichuanQuantizationConfig, plan_for
from baichuan.quant.plan import Plan, linears, quantized
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles


def quantize_checkpoint(
    source: Path,
    target: Path,
    plan: Plan,
    progress: Progress = lambda done, total: None,
    *,
    ids: Tensor | None = None,
) -> None:
    """Write a quantized copy of a checkpoint.

    Args:
        source: directory of a checkpoint in float32, bfloat16 or float16.
        target: directory to make; it must not exist.
        plan: which matrices, and how.
        progress: told (bytes of the source finished, all bytes) when all is checked, and after each
            tensor.
        ids: token ids int64 [rows, positions] to choose the codes by; None rounds to nearest.

    Raises:
        CheckpointError: the source is damaged or quantized already, the disk is too small.
        UsageError: the target exists, or another run is writing it.
    """
    check_target(target)
    config = read_config(source)
    weights = WeightFiles(source)
    refuse_quantized(config, weights)
    plan = plan_for(config, plan)
    headers = {name: header for name, header in weights.headers.items() if "inv_freq" not in name}
    schemes = checked_schemes(config, plan, weights)
    sizes = {name: stored_bytes(header, schemes.get(name)) for name, header in headers.items()}
    config.quantization_config = BaichuanQuantizationConfig.of(plan)
    if ids is not None:
        change = _calibrated(config, plan, schemes, sizes, ids)
        rewrite_checkpoint(weights, target, change, progress)
        return
    single = [Part((name,), size) for name, size in sizes.items()]

    def convert(read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ((name, tensor),) = read.items()
        return converted(name, tensor, schemes.get(name))

    change = Change(single, convert, config, {"plan": plan.to_dict()})
    rewrite_checkpoint(weights, target, change, progress)


def _calibrated(
    config: BaichuanConfig,
    plan: Plan,
    schemes: Mapping[str, Scheme],
    sizes: Mapping[str, int],
    ids: Tensor,
) -> Change:
    calibrated = Calibrated(config, schemes, ids)
    grouped = [Part(names, sum(map(sizes.__getitem__, names))) for names in parts(list(sizes))]
    texts = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    settings = {"plan": plan.to_dict(), "texts": texts, "rows": list(ids.shape)}
    return Change(grouped, calibrated.convert, config, settings, calibrated.skip)


def checked_schemes(config: BaichuanConfig, plan: Plan, weights: WeightFiles) -> dict[str, Scheme]:
    """Give the scheme of each weight to quantize, having checked that all tensors are there."""
    with torch.device("meta"):
        network: nn.Module = BaichuanForCausalLM(config)
    check_tensors(weights.directory, weights.shapes, network)
    return {f"{name}.weight": scheme for name, scheme in linears(network, plan).items()}


def stored_bytes(header: Tensor, scheme: Scheme | None) -> int:
    """Give the bytes of one tensor in the result, about."""
    if scheme is None:
        return header.nbytes
    return int(header.numel() * scheme.stored_bits(header.shape[-1]) / 8)


def converted(name: str, tensor: Tensor, scheme: Scheme | None) -> dict[str, Tensor]:
    """Give what is stored of one tensor, by name.

    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    if scheme is None:
        return {name: tensor}
    module = name.removesuffix(".weight")
    try:
        layer = quantized(tensor, scheme)
    except UsageError as error:
        raise CheckpointError("{name}: {reason}", name=name, reason=error) from error
    return {f"{module}.{part}": content for part, content in layer.state_dict().items()}
