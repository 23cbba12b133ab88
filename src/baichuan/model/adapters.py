"""Adapters through peft: LoRA beside quantized layers, and adapters that are read from a directory.

peft knows `nn.Linear`; its own hook for other layers, `LoraConfig._register_custom_module`, tells
it of quantized ones. Knows no training and no checkpoint of a whole network. Needs peft.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_adapters_to_merge
from safetensors import SafetensorError
from torch import nn

from baichuan.errors import CheckpointError, UsageError
from baichuan.hub import check_permission
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear

_CONFIG = "adapter_config.json"


class QuantizedLora(LoraLinear):  # type: ignore[misc]  # untyped base
    """y = quantized(x) + scaling * B(A(dropout(x))); A and B are float32 unless cast."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return cast(int, module.in_features), cast(int, module.out_features)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the weight, which is rounded anew in its own scheme.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: which; None takes the active ones.

        Raises:
            ValueError: not finite, and `safe_merge` was asked for.
        """
        names = check_adapters_to_merge(self, adapter_names)
        if not names:
            return
        layer = self.get_base_layer()
        weight = layer.dequantize()
        for name in names:
            weight += self.get_delta_weight(name).to(weight)
        if safe_merge and not bool(weight.isfinite().all()):
            raise ValueError(f"merging {', '.join(names)} gives weights that are not finite")
        layer.load_state_dict(type(layer).from_weight(weight, layer.scheme).state_dict())
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Refuse: what rounding took cannot be given back.

        Raises:
            UsageError: always, if anything was merged.
        """
        if self.merged:
            raise UsageError(
                "An adapter merged into quantized weights cannot be taken out again; load the "
                "model anew."
            )


def with_quantized(config: PeftConfig) -> PeftConfig:
    """Teach a LoRA configuration about quantized layers, and return it.

    Raises:
        UsageError: DoRA, which needs the weights themselves.
    """
    if not isinstance(config, LoraConfig):
        return config
    if config.use_dora:
        raise UsageError(
            "DoRA divides by the norms of the weights and cannot stand beside quantized ones; "
            "leave out either --use_dora or --bits."
        )
    config._register_custom_module({QuantizedLinear: QuantizedLora, OriginalLinear: QuantizedLora})
    return config


def read_adapter_config(directory: Path) -> PeftConfig:
    """Read the adapter_config.json that peft wrote.

    Raises:
        CheckpointError: there is none, or peft cannot read it.
    """
    check_permission(directory)
    if not (directory / _CONFIG).is_file():
        raise CheckpointError(
            "{directory} holds no adapter: there is no {file}. Give the directory that training "
            "wrote, or one of its checkpoint-... directories.",
            directory=directory,
            file=_CONFIG,
        )
    try:
        return PeftConfig.from_pretrained(str(directory))
    except PermissionError as error:
        raise CheckpointError.unreadable(directory / _CONFIG, error) from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CheckpointError(
            "{file} cannot be read ({reason}); it is damaged, or of a newer peft.",
            file=directory / _CONFIG,
            reason=error,
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep a warning from the user: peft asks transformers by a name that it will give up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def attach_adapter(
    model: Any, directory: Path, *, trainable: bool = False, low_memory: bool = False
) -> PeftModel:
    """Put an adapter from a directory beside a network's layers, in place.

    Args:
        model: BaichuanForCausalLM, quantized or not.
        directory: with adapter_config.json and adapter_model.safetensors.
        trainable: whether its weights shall be trained further.
        low_memory: leave a network on the meta device there.

    Returns:
        peft's model around the network.

    Raises:
        CheckpointError: the directory holds no adapter, or one of another network.
    """
    config = read_adapter_config(directory)
    if any(isinstance(module, (QuantizedLinear, OriginalLinear)) for module in model.modules()):
        config = with_quantized(config)
    try:
        with quiet_peft():
            return PeftModel.from_pretrained(
                model,
                str(directory),
                config=config,
                is_trainable=trainable,
                low_cpu_mem_usage=low_memory,
            )
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            "The adapter in {directory} does not fit the model: {reason}. It was trained on "
            "{base}; give that model.",
            directory=directory,
            reason=str(error).strip().splitlines()[-1].strip(),
            base=config.base_model_name_or_path,
        ) from error


def load_for_inference(model: Any, directory: Path) -> Any:
    """Give the network with an adapter: merged into float weights, beside quantized ones.

    Merged, it is as fast as without; but rounding a merged weight to 4 or 8 bits again would lose
    part of what was learned.
    """
    adapted = attach_adapter(model, directory)
    if getattr(model, "hf_quantizer", None) is None:
        return adapted.merge_and_unload()
    return adapted.get_base_model().eval()
