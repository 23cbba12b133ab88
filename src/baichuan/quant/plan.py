"""Which matrices of a network are quantized, and how: the content of a saved quantization config.

Knows module names and schemes; no transformers and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from baichuan.errors import UsageError
from baichuan.kernels.memory import moved_to_huge_pages
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear
from baichuan.quant.scheme import Scheme

#: Of the saved layout. A reader refuses what is newer than itself.
FORMAT_VERSION = 1
_FIELDS = {"format_version", "bits", "group_size", "layout", "exceptions"}
_LAYERS: dict[str, type[QuantizedLinear] | type[OriginalLinear]] = {
    "blocks": QuantizedLinear,
    "original": OriginalLinear,
}
#: The head weighs little and every answer goes through it: int8 whatever the rest has.
_HEAD, _HEAD_SCHEME = "lm_head", Scheme(8, None)


@dataclass(frozen=True)
class Plan:
    """A scheme for every linear layer, with exceptions by name.

    Attributes:
        scheme: for each `nn.Linear` that is not named below.
        exceptions: module name to its own scheme, or to None: stays as it is.
    """

    scheme: Scheme
    exceptions: Mapping[str, Scheme | None] = field(default_factory=lambda: {_HEAD: _HEAD_SCHEME})

    @classmethod
    def of_original(cls, bits: int) -> Plan:
        """Give the original's plan: its arithmetic, and a head that stays as it is."""
        return cls(Scheme(bits, None, "original"), {_HEAD: None})

    def keeping(self, name: str) -> Plan:
        """Give the same plan, but with one module left as it is."""
        return Plan(self.scheme, {**self.exceptions, name: None})

    def below(self, prefix: str) -> Plan:
        """Give the plan for a part of the network, whose names lack the prefix."""
        inner = {name.removeprefix(prefix): scheme for name, scheme in self.exceptions.items()}
        return Plan(self.scheme, inner)

    def scheme_of(self, name: str) -> Scheme | None:
        """Give the scheme of a module, None if it stays as it is."""
        return self.exceptions.get(name, self.scheme)

    def to_dict(self) -> dict[str, Any]:
        """Give what is saved in config.json."""
        return {
            "format_version": FORMAT_VERSION,
            **self.scheme.to_dict(),
            "exceptions": {
                n: None if s is None else s.to_dict() for n, s in self.exceptions.items()
            },
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gave.

        Raises:
            UsageError: written by a newer version of this package, or no such configuration.
        """
        version = saved.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise UsageError(
                "The quantized weights have format version {version}; this version of baichuan "
                "reads {known}. Install a newer baichuan-lm, or quantize them again.",
                version=version,
                known=FORMAT_VERSION,
            )
        unknown = sorted(saved.keys() - _FIELDS)
        if unknown:
            raise UsageError(
                "The quantization_config has {names}, which this version of baichuan does not "
                "know; it knows bits, group_size and exceptions.",
                names=", ".join(unknown),
            )
        try:
            exceptions = {
                str(name): None if s is None else Scheme.from_dict(s)
                for name, s in saved.get("exceptions", {}).items()
            }
            if "layout" in saved:
                return cls(Scheme.from_dict(saved), exceptions)
            return cls(Scheme.of_bits(saved["bits"], saved.get("group_size")), exceptions)
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                "The quantization_config {given!r} cannot be read ({reason!r}); it needs 'bits' "
                "and may have 'group_size' and 'exceptions'.",
                given=dict(saved),
                reason=error,
            ) from error


def linears(model: nn.Module, plan: Plan) -> dict[str, Scheme]:
    """Name the linear layers that the plan quantizes, in the network's order.

    Raises:
        UsageError: one of them has a bias.
    """
    found = {}
    for name, module in model.named_modules():
        scheme = plan.scheme_of(name) if type(module) is nn.Linear else None
        if scheme is None:
            continue
        if module.bias is not None:
            raise UsageError(
                "{name} has a bias; only linear layers without one are quantized.", name=name
            )
        found[name] = scheme
    return found


def make_room(model: nn.Module, plan: Plan) -> None:
    """Put empty quantized layers in place of the linear ones, for weights that come from a file."""
    for name, scheme in linears(model, plan).items():
        old = model.get_submodule(name)
        with torch.device(cast(Tensor, old.weight).device):
            layer = _LAYERS[scheme.layout]
            new = layer(cast(int, old.in_features), cast(int, old.out_features), scheme)
        model.set_submodule(name, new)


def quantize_modules(
    model: nn.Module, plan: Plan, done: Callable[[str], None] = lambda name: None
) -> None:
    """Quantize a model one layer at a time, so that each old weight is free before the next.

    Args:
        model: changed in place.
        plan: which layers, and how.
        done: told the name of each finished layer, for a progress bar.

    Raises:
        UsageError: a weight is not in memory, or one that stays as it is holds NaN or infinity
            (nothing is changed then); or one that is quantized does (the layers before it are
            quantized).
    """
    schemes = linears(model, plan)
    for name, parameter in model.named_parameters():
        quantized_later = name.removesuffix(".weight") in schemes  # its rounding finds NaN
        if not (quantized_later or parameter.is_meta or bool(parameter.isfinite().all())):
            raise UsageError(
                "{name} holds NaN or infinity. Load the model again from sound files.", name=name
            )
    for name in schemes:
        if _weight(model, name).device.type == "meta":
            raise UsageError(
                "{name} is not in memory (device_map moved it to disk). Load the model without "
                "device_map, quantize it, then move it: `model.quantize(8).cuda()`.",
                name=name,
            )
    for name, scheme in schemes.items():
        try:
            layer = quantized(_weight(model, name), scheme)
        except UsageError as error:
            raise UsageError(
                "{name}: {reason} Load the model again from sound files.", name=name, reason=error
            ) from error
        model.set_submodule(name, layer.train(model.get_submodule(name).training))
        done(name)


def quantized(weight: Tensor, scheme: Scheme) -> QuantizedLinear | OriginalLinear:
    """Quantize one weight [out_features, in_features]."""
    return _LAYERS[scheme.layout].from_weight(weight, scheme)


def use_huge_pages(model: nn.Module) -> None:
    """Move the codes of all quantized layers on a CPU into large pages (kernels/memory.py)."""
    for module in model.modules():
        codes = module.codes if isinstance(module, QuantizedLinear) else None
        if codes is not None and codes.device.type == "cpu":
            module.codes = moved_to_huge_pages(codes)


def _weight(model: nn.Module, name: str) -> Tensor:
    return cast(Tensor, model.get_submodule(name).weight).detach()
