"""Quantized networks for transformers: `model.quantize`, and the saved format's registration.

transformers calls the quantizer where a config.json has our `quantization_config`; so
`from_pretrained` and `save_pretrained` carry quantized weights without a special loader. Knows no
arithmetic (quant/).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
from packaging.version import Version
from torch import nn
from tqdm import tqdm
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from baichuan.errors import CheckpointError, UsageError
from baichuan.hub import HUB_ARGUMENTS, adapter_directory
from baichuan.language import translate
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear
from baichuan.quant.plan import Plan, linears, make_room, quantize_modules
from baichuan.quant.scheme import Scheme

METHOD = "baichuan"
#: The oldest peft that adds, loads and merges adapters here, as pyproject.toml says.
LEAST_PEFT = "0.20"

Model = TypeVar("Model", bound="QuantizeMixin")


class BaichuanQuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]  # untyped base
    """What config.json says of quantized weights; also `from_pretrained(quantization_config=...)`.

    Args:
        bits: 8, 4 or 3.
        group_size: columns that share a scale; None for the default of `bits`.
        exceptions: module name to `{"bits": ..., "group_size": ...}` or None (not quantized).
        format_version: of the saved layout.

    Raises:
        UsageError: a value that is not allowed, or a newer format.
    """

    def __init__(self, bits: int = 4, group_size: int | None = None, **saved: Any) -> None:
        self.quant_method = METHOD
        fields = {"bits": bits, "group_size": group_size, **saved}
        fields.pop("quant_method", None)
        self.plan = (
            Plan.from_dict(fields)
            if fields.keys() - {"bits", "group_size"}
            else Plan(Scheme.of_bits(bits, group_size))
        )

    @classmethod
    def of(cls, plan: Plan) -> BaichuanQuantizationConfig:
        """Give the configuration of a plan."""
        return cls(**plan.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Give the fields of config.json."""
        return {"quant_method": METHOD, **self.plan.to_dict()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Give all fields: a reader must not depend on our defaults."""
        return self.to_dict()


class BaichuanQuantizer(HfQuantizer):  # type: ignore[misc]  # untyped base
    """Swaps linear layers: before the weights arrive if they are quantized, after it if not."""

    quantization_config: BaichuanQuantizationConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        if self.pre_quantized:
            swap_modules(model, self.quantization_config)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> nn.Module:
        if not self.pre_quantized:
            plan = plan_for(model.config, self.quantization_config.plan)
            self.quantization_config = BaichuanQuantizationConfig.of(plan)
            model.config.quantization_config = self.quantization_config
            quantize_modules(model, _plan_below(model, plan))
        return cast(nn.Module, model)

    def is_serializable(self) -> bool:
        """Say that `save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that adapters may be trained on top."""
        return True

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        to_linear(model, dtype or torch.float32)
        return model


class QuantizeMixin:
    """Adds `quantize` to a network."""

    config: Any
    hf_quantizer: Any
    to: Callable[..., Any]

    def quantize(
        self: Model,
        bits: int,
        group_size: int | None = None,
        scheme: str = "blocks",
        progress: bool = False,
    ) -> Model:
        """Quantize the weights of the linear layers, in place, and return the model.

        Embedding and norms stay as they are. The model may be in float32, bfloat16 or float16 and
        on any device; `save_pretrained` writes it and `from_pretrained` reads it back.

        Args:
            bits: 8 (one scale per row), 4 (one per group of 128 columns) or 3 (one per 64).
            group_size: 32, 64, 128 or 256 columns for each scale instead.
            scheme: "original" for the original code's arithmetic, exactly, which is slow.
            progress: show a bar.

        Raises:
            UsageError: the model is quantized already, bits or group size are not allowed, or a
                weight is not in memory.
        """
        if getattr(self, "hf_quantizer", None) is not None:
            raise UsageError(
                "The model is quantized already ({scheme}); quantizing it twice would lose more. "
                "Load the original weights to quantize anew.",
                scheme=describe(self.config.quantization_config),
            )
        plan = Plan(Scheme.of_bits(bits, group_size))
        if scheme != "blocks":
            plan = Plan(Scheme(bits, group_size, scheme), Plan.of_original(bits).exceptions)
        settings = BaichuanQuantizationConfig.of(plan_for(self.config, plan))
        network = cast(nn.Module, self)
        count = len(linears(network, settings.plan))
        with tqdm(total=count, unit="layer", desc=f"int{bits}", disable=not progress) as bar:
            quantize_modules(network, settings.plan, lambda _: bar.update())
        self.hf_quantizer = BaichuanQuantizer(settings, pre_quantized=True)
        self.config.quantization_config = settings
        self.is_quantized = True
        return self

    def add_adapter(self, adapter_config: Any, *given: Any, **named: Any) -> Any:
        """Add an adapter (LoRA, ...) as transformers does, beside quantized layers too.

        Raises:
            UsageError: peft is not installed or too old for this transformers, or the adapter
                cannot stand beside quantized layers.
        """
        need_peft(MIN_PEFT_VERSION)
        from baichuan.model.adapters import with_quantized

        assert isinstance(self, nn.Module)
        if is_quantized(self):
            adapter_config = with_quantized(adapter_config)
        return super().add_adapter(adapter_config, *given, **named)  # type: ignore[misc]  # PreTrainedModel's

    def load_adapter(
        self, peft_model_id: str | None = None, adapter_name: str | None = None, **named: Any
    ) -> Any:
        """Load an adapter as transformers does; raises what `add_adapter` does.

        Raises:
            CheckpointError: a directory without an adapter, or with one that does not fit; the
                network is as it was then.
        """
        need_peft()
        if peft_model_id is None:
            return super().load_adapter(None, adapter_name, **named)  # type: ignore[misc]
        from baichuan.model import adapters

        assert isinstance(self, nn.Module)
        name = adapter_name or "default"
        known = name in getattr(self, "peft_config", {})  # then its weights are exchanged
        directory = adapter_directory(peft_model_id, **_hub_arguments(named))
        config, weights = adapters.read_adapter(directory)
        config = named.pop("peft_config", None) or config
        if is_quantized(self):
            config = adapters.with_quantized(config)
        # transformers takes the magnitudes of DoRA for a module's, as peft names them in a network.
        state = {
            re.sub("_magnitude_vector$", r"\g<0>.weight", key): t for key, t in weights.items()
        }
        named = {**named, "peft_config": config, "adapter_state_dict": state}
        if known:
            return super().load_adapter(None, name, **named)  # type: ignore[misc]
        try:
            with adapters.explained(self, directory, weights, name):
                return super().load_adapter(None, name, **named)  # type: ignore[misc]
        except CheckpointError:
            if name in getattr(self, "peft_config", {}):
                adapters.remove_adapter(self, name)
            raise

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **options: Any) -> Any:
        """Change the size of the vocabulary as transformers does.

        Raises:
            UsageError: the head is quantized, which cannot take new rows.
        """
        head = self.lm_head  # type: ignore[attr-defined]
        if not isinstance(head, (QuantizedLinear, OriginalLinear)):
            return super().resize_token_embeddings(new_num_tokens, **options)  # type: ignore[misc]
        size = self.config.vocab_size
        if new_num_tokens not in (None, size) or options.get("pad_to_multiple_of"):
            raise UsageError(
                "The output head is quantized and has {size} rows; it cannot be resized to "
                "{given}. Resize the original model, then quantize it.",
                size=size,
                given=new_num_tokens,
            )
        return self.get_input_embeddings()  # type: ignore[attr-defined]

    def half(self, *_: Any) -> Any:
        """Cast what is not quantized to float16; transformers refuses it for quantized models."""
        return self.to(torch.float16)

    def float(self, *_: Any) -> Any:
        """Cast what is not quantized to float32; transformers refuses it for quantized models."""
        return self.to(torch.float32)


def _hub_arguments(named: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of `load_adapter` that say where on the hub an adapter is."""
    load_config = named.get("load_config")  # from_pretrained's, which found a name of an adapter
    given = {
        **(load_config.download_kwargs if load_config is not None else {}),
        **(named.pop("adapter_kwargs", None) or {}),
        **named,
    }
    for name in HUB_ARGUMENTS:
        named.pop(name, None)
    return {name: given[name] for name in HUB_ARGUMENTS if given.get(name)}


def need_peft(least: str = LEAST_PEFT) -> None:
    """Raise UsageError if peft is not installed, or older than `least`."""
    if find_spec("peft") is None:
        raise UsageError(
            "Adapters (LoRA) need the package peft, which is not installed: pip install peft"
        )
    installed = version("peft")
    if Version(installed) < Version(least) and least != LEAST_PEFT:
        raise UsageError(
            "peft {installed} is installed, and add_adapter of transformers {transformers} needs "
            "peft {least} or newer: pip install -U 'peft>={least}'. Without it, use peft itself: "
            "get_peft_model(model, baichuan.model.adapters.with_quantized(config)).",
            installed=installed,
            transformers=version("transformers"),
            least=least,
        )
    if Version(installed) < Version(least):
        raise UsageError(
            "peft {installed} is installed, and adapters (LoRA) need peft {least} or newer: "
            "pip install -U 'peft>={least}'",
            installed=installed,
            least=least,
        )


def is_quantized(model: nn.Module) -> bool:
    """Say whether a network has quantized layers."""
    return any(isinstance(module, (QuantizedLinear, OriginalLinear)) for module in model.modules())


def to_linear(
    model: nn.Module, dtype: torch.dtype, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Replace quantized layers by `nn.Linear` with the weights that their codes stand for.

    Args:
        model: changed in place; on the meta device it stays there.
        dtype: of the weights.
        wanted: says by its name whether a layer is replaced.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, (QuantizedLinear, OriginalLinear)) and wanted(name):
            shape, device = (module.out_features, module.in_features), module.qweight.device
            plain = nn.Linear(module.in_features, module.out_features, False, device="meta")
            weight = (
                torch.empty(shape, dtype=dtype, device=device)
                if device.type == "meta"
                else module.dequantize(dtype)
            )
            plain.weight = nn.Parameter(weight)
            model.set_submodule(name, plain)


def plan_for(config: Any, plan: Plan) -> Plan:
    """Leave a head alone that is the embedding: quantized, it would be a second matrix."""
    return plan.keeping("lm_head") if config.tie_word_embeddings else plan


def swap_modules(network: nn.Module, settings: BaichuanQuantizationConfig | dict[str, Any]) -> None:
    """Put empty quantized layers into a network that has no weights yet.

    Args:
        network: the whole, or the decoder without its head.
        settings: what config.json has as `quantization_config`.

    Raises:
        CheckpointError: quantized by another library, or in a way unknown here.
    """
    if isinstance(settings, dict):
        method = settings.get("quant_method")
        if method != METHOD:
            raise CheckpointError(
                "The weights are quantized by {method!r}; this package reads {ours!r} and "
                "weights that are not quantized. Give the original weights.",
                method=method,
                ours=METHOD,
            )
        try:
            settings = BaichuanQuantizationConfig(**settings)
        except UsageError as error:
            raise CheckpointError(
                "The checkpoint's config.json cannot be used: {why}", why=error
            ) from error
    make_room(network, _plan_below(network, settings.plan))


def _plan_below(network: Any, plan: Plan) -> Plan:
    """Give the plan in the names of a network that may lack the head."""
    prefix = network.base_model_prefix
    return plan if hasattr(network, prefix) else plan.below(f"{prefix}.")


def describe(settings: Any) -> str:
    """Name a quantization in words, such as "int4, groups of 128"."""
    plan = settings.plan if isinstance(settings, BaichuanQuantizationConfig) else None
    if plan is None:
        return translate("by another library")
    bits, size = plan.scheme.bits, plan.scheme.group_size
    if size is None:
        return translate("int{bits}, one scale a row", bits=bits)
    return translate("int{bits}, groups of {size}", bits=bits, size=size)


def register_quantization() -> None:
    """Tell transformers about the format; safe to call again."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(BaichuanQuantizationConfig)
        register_quantizer(METHOD)(BaichuanQuantizer)
