"""From a GGUF file to a checkpoint, tensor by tensor (checkpoint/rewrite.py).

What the blocks mean is known to the package gguf. The result is a checkpoint like any other: float,
or quantized in this package's formats.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor, nn

from baichuan.checkpoint.gguf.container import GgufWeights
from baichuan.checkpoint.gguf.names import tensor_names, to_config, to_halves
from baichuan.checkpoint.gguf.vocabulary import save_vocabulary
from baichuan.checkpoint.quantize import converted, stored_bytes
from baichuan.checkpoint.rewrite import Change, Part, Progress, rewrite_checkpoint
from baichuan.checkpoint.unfinished import check_target
from baichuan.errors import CheckpointError, UsageError
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.quantization import BaichuanQuantizationConfig, plan_for
from baichuan.quant.plan import Plan, linears

#: Weights that are decoded at a time: gguf makes float32 of them on the way.
_PART = 2**24
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


def checkpoint_from_gguf(
    source: Path,
    target: Path,
    plan: Plan | None = None,
    dtype: str | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the network and the tokenizer of a GGUF file as a checkpoint.

    Args:
        source: the file; every type of block that the package gguf decodes.
        target: directory to make; it must not exist.
        plan: which matrices are quantized anew, and how; None for none.
        dtype: of everything that is not, "float32", "bfloat16" or "float16"; by default the file's
            own, and float16 for blocks, of which it keeps more than bfloat16.
        progress: told (bytes of the file finished, all bytes) when all is checked, and after each
            tensor.

    Raises:
        CheckpointError: the file is damaged or of another network, the disk is too small.
        UsageError: the target exists, or another run is writing it.
    """
    check_target(target)
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(
            "dtype is {given!r}; allowed is one of {allowed}.",
            given=dtype,
            allowed=", ".join(_DTYPES),
        )
    weights = GgufWeights(source)
    kept = _own_dtype(weights) if dtype is None else _DTYPES[dtype]
    config = to_config(weights, kept)
    conversion = _Conversion(weights, config, plan, kept)
    with tempfile.TemporaryDirectory() as beside:
        weights.directory = Path(beside)
        save_vocabulary(weights.metadata, config, weights.directory)
        settings = {"plan": plan and plan.to_dict(), "dtype": str(kept)}
        change = Change(conversion.parts, conversion.convert, config, settings)
        rewrite_checkpoint(weights, target, change, progress)


class _Conversion:
    """From the file's tensors to a network's.

    Attributes:
        parts: what becomes one tensor.
    """

    def __init__(
        self, weights: GgufWeights, config: BaichuanConfig, plan: Plan | None, dtype: torch.dtype
    ) -> None:
        with torch.device("meta"):
            network: nn.Module = BaichuanForCausalLM(config)
        names = tensor_names(config.num_hidden_layers)
        if config.tie_word_embeddings:
            names.pop("lm_head.weight")
        shapes = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
        _check(weights, names, shapes)
        self._schemes = {}
        if plan is not None:
            plan = plan_for(config, plan)
            self._schemes = {f"{n}.weight": s for n, s in linears(network, plan).items()}
            config.quantization_config = BaichuanQuantizationConfig.of(plan)
        self.parts = [
            Part(theirs, stored_bytes(shapes[ours], self._schemes.get(ours)))
            for ours, theirs in names.items()
        ]
        self._names = {theirs[0]: ours for ours, theirs in names.items()}
        self._weights, self._heads, self._dtype = weights, config.num_attention_heads, dtype

    def convert(self, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give one tensor of the network, quantized if it shall be."""
        name = self._names[next(iter(read))]
        parts = [self._decoded(theirs, raw) for theirs, raw in read.items()]
        if len(parts) > 1:
            query, key, value = parts
            parts = [to_halves(query, self._heads), to_halves(key, self._heads), value]
        return converted(name, torch.cat(parts), self._schemes.get(name))

    def _decoded(self, name: str, raw: Tensor) -> Tensor:
        stored = self._weights.stored[name]
        weight = decode(raw, stored.kind, self._dtype).view(stored.shape)
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                "{path}: {name} holds what is no finite number in {dtype}. Give --dtype float32, "
                "or fetch the file again.",
                path=self._weights.path,
                name=name,
                dtype=self._dtype,
            )
        return weight


def decode(raw: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """Give the numbers that blocks stand for.

    Args:
        raw: uint8 [rows, bytes of a row] or [bytes].
        kind: of the blocks.
        dtype: of the result, [rows, columns].
    """
    rows = raw.reshape(-1, raw.shape[-1])
    if kind in _PLAIN:
        return rows.clone().view(_PLAIN[kind]).to(dtype)
    block, size = GGML_QUANT_SIZES[kind]
    columns = rows.shape[1] // size * block
    parts = torch.split(rows, max(1, _PART // columns))
    # A damaged scale may be infinite: that is found by whoever looks at the result.
    with np.errstate(all="ignore"):
        decoded = [torch.from_numpy(quants.dequantize(p.numpy(), kind)).to(dtype) for p in parts]
    return torch.cat(decoded)


def _own_dtype(weights: GgufWeights) -> torch.dtype:
    kinds = {tensor.kind for tensor in weights.stored.values() if len(tensor.shape) > 1}
    if kinds == {Kind.F32}:
        return torch.float32
    return torch.bfloat16 if Kind.BF16 in kinds else torch.float16


def _check(
    weights: GgufWeights, names: Mapping[str, tuple[str, ...]], shapes: Mapping[str, Tensor]
) -> None:
    """Check that the file holds exactly a network's tensors, in types that can be decoded."""
    wanted: dict[str, tuple[int, ...]] = {}
    for ours, several in names.items():
        rows, *columns = shapes[ours].shape
        wanted |= dict.fromkeys(several, (rows // len(several), *columns))
    held = {name: tensor.shape for name, tensor in weights.stored.items()}
    wrong = sorted(n for n in wanted.keys() | held.keys() if wanted.get(n) != held.get(n))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            "{path} does not hold the tensors of its network: {name} is {held}, needed is {wanted} "
            "({count} such). Fetch the file again, or one that llama.cpp runs.",
            path=weights.path,
            name=name,
            held=list(held.get(name, ())) or "-",
            wanted=list(wanted.get(name, ())) or "-",
            count=len(wrong),
        )
    for kind in {tensor.kind for tensor in weights.stored.values()}:
        _check_kind(weights.path, kind)


def _check_kind(path: Path, kind: Kind) -> None:
    block = torch.zeros(1, GGML_QUANT_SIZES[kind][1], dtype=torch.uint8)
    try:
        decode(block, kind, torch.float32)
    except NotImplementedError as error:
        raise CheckpointError(
            "{path} holds tensors of the type {kind}, which the package gguf does not decode. Give "
            "a file in Q8_0, Q6_K, Q4_K_M or the like.",
            path=path,
            kind=kind.name,
        ) from error
