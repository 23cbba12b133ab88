"""What is trained: a network with all, some, or only an adapter's weights set to learn.

Chooses the dtypes: frozen weights lie in the dtype of the computation, weights that learn in
float32, for in 16 bits small steps round to nothing (DeepSpeed keeps its own float32 copies). Knows
peft; no data and no trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from baichuan.checkpoint.load import load
from baichuan.errors import UsageError
from baichuan.language import translate
from baichuan.model.adapters import attach_adapter, quiet_peft, with_quantized
from baichuan.model.pretrained import read_config
from baichuan.model.quantization import to_linear
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear

if TYPE_CHECKING:
    from baichuan.train.recipe import MethodArguments, Recipe

_LINEAR = (nn.Linear, QuantizedLinear, OriginalLinear)


def prepare(recipe: Recipe, directory: Path) -> Any:
    """Load a network and set what learns.

    Args:
        recipe: what was asked for.
        directory: of the checkpoint to begin with.

    Returns:
        BaichuanForCausalLM, or peft's model around it; on the CPU, or spread by ZeRO-3.

    Raises:
        UsageError: a method that does not go with the weights or the way of spreading them.
        CheckpointError: damaged files, or an adapter of another model.
    """
    network = _load(recipe, directory)
    adapter = recipe.model.adapter_name_or_path
    if recipe.method.finetuning_type == "lora":
        if adapter is not None:
            return attach_adapter(network, Path(adapter), trainable=True)
        with quiet_peft():
            return get_peft_model(network, _lora(recipe, network))
    if adapter is not None:
        network = attach_adapter(network, Path(adapter)).merge_and_unload()
    if recipe.method.finetuning_type == "freeze":
        _freeze(network, recipe.method)
    return _with_float32(network, recipe.training)


def reference(recipe: Recipe, directory: Path) -> Any:
    """Give the network that DPO compares with, or None: beside an adapter, that is the base.

    Raises what `prepare` does.
    """
    if recipe.method.finetuning_type == "lora":
        return None
    network = _load(recipe, directory)
    adapter = recipe.model.adapter_name_or_path
    if adapter is not None:
        network = attach_adapter(network, Path(adapter)).merge_and_unload()
    return network.requires_grad_(False).eval()


def compute_dtype(training: TrainingArguments) -> torch.dtype:
    """Give the dtype of products: bfloat16 or float16 if asked for, else float32."""
    if training.bf16:
        return torch.bfloat16
    return torch.float16 if training.fp16 else torch.float32


def _load(recipe: Recipe, directory: Path) -> Any:
    """Load the network in memory; with `bits`, or from a quantized checkpoint, for LoRA alone."""
    bits, method = recipe.model.bits, recipe.method.finetuning_type
    held = getattr(read_config(directory), "quantization_config", None)
    quantized = bits is not None or held is not None
    if quantized and method != "lora":
        raise UsageError(
            "Quantized weights cannot learn; --finetuning_type is {method}, and only lora trains "
            "beside them.",
            method=method,
        )
    if quantized and is_deepspeed_zero3_enabled():
        raise UsageError(
            "ZeRO-3 cuts weights into parts, which quantized ones do not stand; use ZeRO-2, or "
            "leave out --bits."
        )
    asked = recipe.model.dtype
    dtype = compute_dtype(recipe.training) if asked is None else getattr(torch, asked)
    if quantized:
        network = load(directory, bits=bits, dtype=dtype, device="cpu")[0]
        if recipe.method.stage == "dpo":
            _restore_head(network)
        return network
    if method == "full" and not recipe.training.deepspeed:
        dtype = torch.float32  # all of it learns: spare the copy in 16 bits
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def _restore_head(network: Any) -> None:
    """Multiply out a quantized head: trl takes the head's weight itself."""
    to_linear(network, network.dtype, lambda name: name == "lm_head")
    network.lm_head.requires_grad_(False)


def _lora(recipe: Recipe, network: nn.Module) -> LoraConfig:
    """Describe the adapter to peft.

    Raises:
        UsageError: a target that the network does not have.
    """
    method = recipe.method
    if method.additional_target:
        parts = {name.rpartition(".")[2] for name, _ in network.named_modules() if name}
        _check_names("--additional_target", method.additional_target, parts)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.lora_rank,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        target_modules=_targets(method.lora_target, network),
        modules_to_save=list(method.additional_target) or None,
    )
    quantized = getattr(network, "hf_quantizer", None) is not None
    return with_quantized(config) if quantized else config


def _targets(named: Sequence[str], network: nn.Module) -> list[str]:
    """Give the last parts of the names of the linear layers that get an adapter."""
    there = {
        name.rpartition(".")[2]
        for name, module in network.named_modules()
        if isinstance(module, _LINEAR)
    }
    if list(named) == ["all"]:
        return sorted(there - {"lm_head"})
    _check_names("--lora_target", named, there)
    return list(named)


def _check_names(flag: str, named: Sequence[str], there: set[str]) -> None:
    unknown = [name for name in named if name not in there]
    if unknown or not named:
        raise UsageError(
            "{flag} names {unknown}; there are {known} here (W_pack holds q, k and v). Name some "
            "of them, or say all.",
            flag=flag,
            unknown=", ".join(unknown) or translate("nothing"),
            known=", ".join(sorted(there)),
        )


def _freeze(network: Any, method: MethodArguments) -> None:
    """Let only the last layers learn, or with a negative number the first.

    Raises:
        UsageError: no layer, more than there are, or a module that they do not have.
    """
    count, number = len(network.model.layers), method.freeze_trainable_layers
    if not 0 < abs(number) <= count:
        raise UsageError(
            "--freeze_trainable_layers is {given}; this model has {count} layers: give 1 to "
            "{count} for the last ones, or -1 to -{count} for the first.",
            given=number,
            count=count,
        )
    layers = network.model.layers[-number:] if number > 0 else network.model.layers[:-number]
    asked = method.freeze_trainable_modules
    if list(asked) != ["all"]:
        there = {part for name, _ in layers[0].named_modules() for part in name.split(".") if part}
        _check_names("--freeze_trainable_modules", asked, there)
    network.requires_grad_(False)
    for name, parameter in layers.named_parameters():
        if list(asked) == ["all"] or set(asked) & set(name.split(".")):
            parameter.requires_grad_(True)


def _with_float32(network: nn.Module, training: TrainingArguments) -> nn.Module:
    if not training.deepspeed:
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return network
