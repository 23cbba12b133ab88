"""Reading the published int8 checkpoint (Baichuan-13B-Chat-int8) into this package's int8.

Its exact layout is not documented, so this reader is tolerant: beside each int8 `weight` there is a
scale for each output, under one of several names; the weight may lie as [out, in] or, as the
original's quantizer keeps it, [in, out]. Codes stay as they are; scales are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baichuan.errors import CheckpointError
from baichuan.kernels.layout import pack
from baichuan.model.configuration import BaichuanConfig
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles

_SCALES = ("scale", "scales", "weight_scale")
_SCHEME = Scheme(8, None)


def scale_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Map each weight with a scale beside it to the scale's name; empty for other checkpoints."""
    found = {}
    for name in shapes:
        module, _, last = name.rpartition(".")
        if last in _SCALES and f"{module}.weight" in shapes:
            found[f"{module}.weight"] = name
    return found


def plan_of(shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Give the plan that such a checkpoint follows: its head may or may not be quantized."""
    quantized = "lm_head.weight" in scale_names(shapes)
    return Plan(_SCHEME, {} if quantized else {"lm_head": None})


def read_published_int8(weights: WeightFiles, config: BaichuanConfig) -> dict[str, Tensor]:
    """Give the state dict of the network, quantized as `plan_of` says.

    Raises:
        CheckpointError: a weight with a scale is not int8, or its shape does not fit the scale.
    """
    names = scale_names(weights.shapes)
    scales = {name: t.float() for name, t in weights.tensors() if name in names.values()}
    # o_proj is square: what is non-square tells which way all of them lie.
    transposed = any(
        name.endswith("W_pack.weight") and weights.shapes[name][:1] == (config.hidden_size,)
        for name in names
    )
    state: dict[str, Tensor] = {}
    for name, tensor in weights.tensors():
        if name in names:
            turned = transposed and not name.startswith("lm_head") and tensor.ndim == 2
            codes = tensor.T if turned else tensor
            _check_columns(name, codes, config)
            state |= _packed(name, codes, scales[names[name]].reshape(-1, 1))
        elif name not in scales:
            state[name] = tensor
    return state


def _check_columns(name: str, codes: Tensor, config: BaichuanConfig) -> None:
    """Check the columns before they are padded, after which another number may look right."""
    columns = config.intermediate_size if "down_proj" in name else config.hidden_size
    if codes.ndim == 2 and codes.shape[1] != columns:
        raise CheckpointError(
            "{name} has {given} columns, but its config.json describes {columns}. Fetch the files "
            "again, or the config.json that belongs to them.",
            name=name,
            given=codes.shape[1],
            columns=columns,
        )


def _packed(name: str, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
    if codes.dtype != torch.int8 or codes.ndim != 2 or len(codes) != len(scales):
        raise CheckpointError(
            "{name} is {dtype} {shape} with {count} scales; int8 with one scale for each output is "
            "what can be read. Give the original weights and quantize them.",
            name=name,
            dtype=codes.dtype,
            shape=list(codes.shape),
            count=len(scales),
        )
    if not bool(scales.isfinite().all()):
        raise CheckpointError(
            "The scales of {name} hold NaN or infinity. Fetch the checkpoint again.", name=name
        )
    matrix = pack(codes.contiguous(), scales, 8, _SCHEME.columns_per_group)
    module = name.removesuffix(".weight")
    return {f"{module}.codes": matrix.codes, f"{module}.scales": matrix.scales}
