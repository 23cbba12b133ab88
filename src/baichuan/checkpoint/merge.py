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
from peft.utils import ModulesToSaveWrapper, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn

from baichuan.checkpoint.rewrite import (
    Change,
    Part,
    Progress,
    refuse_existing,
    rewrite_checkpoint,
)
from baichuan.digest import file_digest
from baichuan.errors import CheckpointError
from baichuan.model.adapters import attach_adapter, read_adapter_config
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import check_tensors, read_config
from baichuan.model.published_int8 import scale_names
from baichuan.model.quantization import swap_modules
from baichuan.weights import WeightFiles

_PREFIX = "base_model.model."


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
    refuse_existing(target)
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
    headers = {name: header for name, header in weights.headers.items() if "inv_freq" not in name}
    check_tensors(source, {name: tuple(h.shape) for name, h in headers.items()}, network)
    merging = _Merging(attach_adapter(network, adapter, low_memory=True), adapter)
    change = Change(
        _parts(headers, merging),
        merging.convert,
        config,
        {"adapter": {file.name: file_digest(file) for file in sorted(adapter.glob("adapter_*"))}},
    )
    rewrite_checkpoint(weights, target, change, progress)


def _parts(headers: Mapping[str, Tensor], merging: _Merging) -> list[Part]:
    """Read a merged layer's tensors together, and every other tensor by itself."""
    together: dict[str, list[str]] = defaultdict(list)
    for name in headers:
        module = name.rpartition(".")[0]
        together[module if module in merging.changed else name].append(name)
    return [
        Part(tuple(names), sum(headers[name].nbytes for name in names))
        for names in together.values()
    ]


class _Merging:
    """The adapter's layers around a network without weights.

    Attributes:
        changed: names of the modules whose weights change.
    """

    def __init__(self, adapted: nn.Module, directory: Path) -> None:
        """Read the adapter's own weights anew: peft left them on the meta device, too."""
        self.changed: dict[str, Any] = {}
        for name, module in adapted.named_modules():
            if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
                self.changed[name.removeprefix(_PREFIX)] = module
                for part in module.adapter_layer_names:
                    getattr(module, part, nn.Module()).to_empty(device="cpu")
        own = load_peft_weights(str(directory), device="cpu")
        set_peft_model_state_dict(adapted, own)

    @torch.no_grad()
    def convert(self, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge one layer's tensors, or give others back as they are."""
        module = next(iter(read)).rpartition(".")[0]
        if module not in self.changed:
            return dict(read)
        layer = self.changed[module]
        if not isinstance(layer, BaseTunerLayer):  # trained whole
            ((name, old),) = read.items()
            return {name: layer.modules_to_save["default"].weight.to(old.dtype).contiguous()}
        try:
            return _merged(module, layer, read)
        except ValueError as error:
            raise CheckpointError("{name}: {reason}", name=module, reason=error) from error


def _merged(module: str, layer: Any, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    base = layer.get_base_layer()
    own = {name.rpartition(".")[2]: tensor for name, tensor in read.items()}
    if isinstance(base, nn.Linear):
        base.weight = nn.Parameter(own["weight"].float(), requires_grad=False)
        layer.merge(safe_merge=True)
        merged = {"weight": base.weight.to(own["weight"].dtype)}
        base.weight = nn.Parameter(base.weight.to("meta"), requires_grad=False)
    else:
        base.codes, base.scales = own["codes"], own["scales"]
        layer.merge(safe_merge=True)
        merged = {"codes": base.codes, "scales": base.scales}
        base.to("meta")
    return {f"{module}.{name}": tensor for name, tensor in merged.items()}
