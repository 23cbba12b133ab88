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
from baichuan.model.adapters import (
    attach_adapter,
    quiet_peft,
    read_adapter_config,
    with_quantized,
)
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import read_config
from baichuan.model.quantization import plan_for, swap_modules, to_linear
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear
from baichuan.quant.plan import Plan, make_room
from baichuan.quant.scheme import Scheme
from baichuan.train.recipe import MethodArguments

if TYPE_CHECKING:
    from baichuan.train.recipe import Recipe

_LINEAR = (nn.Linear, QuantizedLinear, OriginalLinear)


def check(recipe: Recipe, directory: Path) -> None:
    """Check what shall learn against the modules of the network, before any weight is read.

    Raises:
        UsageError: modules that there are not or that cannot learn, or an adapter that is not as
            the flags say.
        CheckpointError: the configuration cannot be used, or there is no adapter.
    """
    config, bits, method = read_config(directory), recipe.model.bits, recipe.method
    saved = getattr(config, "quantization_config", None)
    if saved is not None and method.finetuning_type != "lora":
        raise UsageError(
            "Quantized weights cannot learn; --finetuning_type is {method}, and only lora trains "
            "beside them.",
            method=method.finetuning_type,
        )
    with torch.device("meta"):
        network = BaichuanForCausalLM(config)
    if saved is not None:
        swap_modules(network, saved)
    elif bits is not None:
        make_room(network, plan_for(config, Plan(Scheme.of_bits(bits))))
    adapter = recipe.model.adapter_name_or_path
    if adapter is not None:
        _check_adapter(Path(adapter), method)
    elif method.finetuning_type == "lora":
        _lora(recipe, network, quantized=saved is not None or bits is not None)
    if method.finetuning_type == "freeze":
        _freeze(network, method)


def prepare(recipe: Recipe, directory: Path) -> Any:
    """Load a network and set what learns, after `check`.

    Args:
        recipe: what was asked for.
        directory: of the checkpoint to begin with.

    Returns:
        BaichuanForCausalLM, or peft's model around it; on the CPU, or spread by ZeRO-3.

    Raises:
        UsageError: quantized weights under ZeRO-3.
        CheckpointError: damaged files, or an adapter of another model.
    """
    network = _load(recipe, directory)
    adapter = recipe.model.adapter_name_or_path
    if recipe.method.finetuning_type == "lora":
        if adapter is not None:
            return attach_adapter(network, Path(adapter), trainable=True)
        with quiet_peft():
            quantized = getattr(network, "hf_quantizer", None) is not None
            return get_peft_model(network, _lora(recipe, network, quantized))
    if adapter is not None:
        network = attach_adapter(network, Path(adapter)).merge_and_unload()
        network.requires_grad_(True)  # which peft took from all but the adapter
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


def _check_adapter(directory: Path, method: MethodArguments) -> None:
    """Refuse flags that describe another adapter than the one that is given.

    Raises:
        UsageError: names the flag, with what the adapter has and what was given.
        CheckpointError: the directory holds no adapter.
    """
    saved, default = read_adapter_config(directory), MethodArguments()
    if method.finetuning_type != "lora" or not isinstance(saved, LoraConfig):
        return
    flags: dict[str, tuple[Any, Any, Any]] = {
        "lora_rank": (method.lora_rank, default.lora_rank, saved.r),
        "lora_alpha": (method.lora_alpha, 2 * method.lora_rank, saved.lora_alpha),
        "lora_dropout": (method.lora_dropout, default.lora_dropout, saved.lora_dropout),
        "use_rslora": (method.use_rslora, default.use_rslora, saved.use_rslora),
        "use_dora": (method.use_dora, default.use_dora, saved.use_dora),
    }
    for name, modules in (
        ("lora_target", saved.target_modules),
        ("additional_target", saved.modules_to_save),
    ):
        given, usual = getattr(method, name), getattr(default, name)
        flags[name] = (sorted(given), usual, sorted(modules or []))
    for name, (given, usual, has) in flags.items():
        if given not in (usual, has):
            raise UsageError(
                "--{name} is {given}, but the adapter in {directory} was trained with {has} and "
                "goes on as it is. Leave out --{name}; or `baichuan merge` that adapter, and train "
                "a new one on the result.",
                name=name,
                given=given,
                directory=directory,
                has=has,
            )


def _lora(recipe: Recipe, network: nn.Module, quantized: bool) -> LoraConfig:
    """Describe the adapter to peft.

    Raises:
        UsageError: a target that the network does not have, or that cannot learn.
    """
    method = recipe.method
    targets = _targets(method.lora_target, network)
    if method.additional_target:
        _check_additional(method.additional_target, targets, network)
    if method.stage == "dpo" and "lm_head" in targets:
        raise UsageError(
            "--stage dpo computes log-probabilities from the weight of lm_head itself, so an "
            "adapter on it would not learn; leave lm_head out of --lora_target."
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.lora_rank,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        target_modules=targets,
        modules_to_save=list(method.additional_target) or None,
    )
    return with_quantized(config) if quantized else config


def _check_additional(additional: Sequence[str], targets: list[str], network: nn.Module) -> None:
    """Check the modules that are trained whole: that they can learn, and leave some for adapters.

    Raises:
        UsageError: there are none of that name, they are quantized, or no target is outside them.
    """
    parts = {
        name.rpartition(".")[2]
        for name, module in network.named_modules()
        if name and not isinstance(module, nn.ModuleList)
    }
    _check_names("--additional_target", additional, parts)
    adapted = False
    for name, module in network.named_modules():
        whole = any(f"{name}.".find(f"{part}.") >= 0 for part in additional)
        if whole and isinstance(module, (QuantizedLinear, OriginalLinear)):
            raise UsageError(
                "--additional_target {given} includes {name}, which is quantized, and quantized "
                "weights cannot learn. Name it in --lora_target, or leave out --bits (or give the "
                "original weights).",
                given=", ".join(additional),
                name=name,
            )
        adapted |= not whole and name.rpartition(".")[2] in targets
    if not adapted:
        raise UsageError(
            "--additional_target {given} includes every module of --lora_target, so no adapter is "
            "left. Name fewer, or train with --finetuning_type full or freeze.",
            given=", ".join(additional),
        )


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
