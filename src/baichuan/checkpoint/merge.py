"""Merging an adapter into a checkpoint on disk, tensor by tensor (rewrite.py).

peft's own layers do the sums, in float32; all of the network but one weight at a time is on the
meta device. Quantized weights are rounded anew in their own scheme. Needs peft.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from baichuan.checkpoint.quantize import converted
from baichuan.checkpoint.rewrite import Change, Part, Progress, rewrite_checkpoint
from baichuan.checkpoint.unfinished import check_target
from baichuan.digest import file_digest
from baichuan.errors import CheckpointError
from baichuan.model.adapters import (
    attach_adapter,
    read_adapter_config,
    read_adapter_weights,
    state_keys,
)
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import check_tensors, read_config
from baichuan.model.published_int8 import scale_names
from baichuan.model.quantization import swap_modules
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles


def merge_adapter(
    source: Path,
    adapter: Path,
    target: Path,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a copy of a checkpoint with an adapter merged into its weights.

    Args:
        source: directory of a checkpoint; it may be quantized, and then so is the result.
        adapter: directory that peft wrote.
        target: directory to make; it must not exist.
        progress: told (bytes of the source finished, all bytes) when all is checked, and after each
            tensor.

    Raises:
        CheckpointError: the source is damaged, the adapter belongs to another model, a sum is not
            finite, the disk is too small.
        UsageError: the target exists, or another run is writing it.
    """
    check_target(target)
    read_adapter_config(adapter)
    config, weights = read_config(source), WeightFiles(source)
    if scale_names(weights.shapes):
        raise CheckpointError(
            "{directory} is in the original's own int8, into which nothing can be merged; give the "
            "original weights.",
            directory=source,
        )
    with torch.device("meta"):
        network = BaichuanForCausalLM(config)
        settings = getattr(config, "quantization_config", None)
        if settings is not None:
            swap_modules(network, settings)
    check_tensors(source, weights.shapes, network)
    headers = {name: header for name, header in weights.headers.items() if "inv_freq" not in name}
    schemes = {
        name: module.scheme
        for name, module in network.named_modules()
        if isinstance(module, (QuantizedLinear, OriginalLinear))
    }
    attach_adapter(network, adapter, low_memory=True)
    merging = _Merging(network, read_adapter_weights(adapter), schemes)
    change = Change(
        _parts(headers, merging),
        merging.convert,
        config,
        {"adapter": {file.name: file_digest(file) for file in sorted(adapter.glob("adapter_*"))}},
    )
    rewrite_checkpoint(weights, target, change, progress)


def _parts(headers: Mapping[str, Tensor], merging: _Merging) -> list[Part]:
    """Read a changed module's tensors together, and every other tensor by itself."""
    together: dict[str, list[str]] = defaultdict(list)
    for name in headers:
        module = name.rpartition(".")[0]
        together[module if module in merging.changed else name].append(name)
    left = sorted(merging.changed - together.keys())
    if left:
        raise CheckpointError(
            "The adapter changes {names}, which has no weights of its own in the checkpoint (a "
            "tied head). Load the model with the adapter instead.",
            names=", ".join(left),
        )
    return [
        Part(tuple(names), sum(headers[name].nbytes for name in names))
        for names in together.values()
    ]


class _Merging:
    """The adapter's layers around a network without weights.

    Attributes:
        changed: names of the modules whose weights change.
    """

    def __init__(
        self, network: nn.Module, weights: Mapping[str, Tensor], schemes: Mapping[str, Scheme]
    ) -> None:
        """Take a network on the meta device that an adapter is attached to.

        Args:
            network: of which only the adapter gets its weights here.
            weights: the adapter's file.
            schemes: of the modules that are quantized on the disk.
        """
        self._schemes = schemes
        self._layers: dict[str, Any] = {
            name.removesuffix(".token_adapter"): module
            for name, module in network.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        own = state_keys(network)
        assigned = {key: weights[name].float() for name, key in own.items()}
        network.load_state_dict(assigned, strict=False, assign=True)
        # Weights of the network itself: of modules trained whole, and of embeddings beside them.
        self._replaced = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in weights.items()
            if name not in own or ".modules_to_save." in own[name]
        }
        modules = {name.rpartition(".")[0] for name in self._replaced}
        self.changed = self._layers.keys() | modules

    @torch.no_grad()
    def convert(self, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge one module's tensors, or return others as they are.

        Raises:
            CheckpointError: a sum is not finite, or peft cannot merge the adapter.
        """
        module = next(iter(read)).rpartition(".")[0]
        if module not in self.changed:
            return dict(read)
        own = {name.rpartition(".")[2]: tensor for name, tensor in read.items()}
        scheme, replaced = self._schemes.get(module), self._replaced.get(f"{module}.weight")
        if replaced is not None and scheme is None:
            own["weight"] = replaced.to(own["weight"].dtype)
        elif replaced is not None:
            return converted(f"{module}.weight", replaced, scheme)
        if module in self._layers:
            try:
                own = _merged(self._layers[module], own)
            except (RuntimeError, ValueError) as error:
                raise CheckpointError("{name}: {reason}", name=module, reason=error) from error
        return {f"{module}.{name}": tensor for name, tensor in own.items()}


def _merged(layer: Any, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors with the adapter merged in; the base stays without weights."""
    base = layer.get_base_layer()
    if "weight" in own:
        base.weight = nn.Parameter(own["weight"].float(), requires_grad=False)
        layer.merge(safe_merge=True)
        merged = {"weight": base.weight.to(own["weight"].dtype).contiguous()}
        base.weight = nn.Parameter(base.weight.to("meta"), requires_grad=False)
    else:
        base.codes, base.scales = own["codes"], own["scales"]
        layer.merge(safe_merge=True)
        merged = {"codes": base.codes, "scales": base.scales}
        base.to("meta")
    return merged
