"""Adapters through peft: LoRA beside quantized layers, and adapters that are read from a directory.

peft knows `nn.Linear`; its own hook for other layers, `LoraConfig._register_custom_module`, tells
it of quantized ones. Knows no training and no checkpoint of a whole network. Needs peft.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.functional import delete_adapter
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from baichuan.errors import CheckpointError, UsageError
from baichuan.hub import check_permission
from baichuan.model.adapter_config import read_lora_config
from baichuan.model.pretrained import counted
from baichuan.model.quantization import is_quantized, to_linear
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear
from baichuan.weights import read_tensors

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
#: What peft's own model puts before the names of the network.
PREFIX = "base_model.model."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: A rank that may stand in a file although, by `rank_pattern`, all weights have others.
_USUAL_RANK = 64


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


def read_adapter_config(directory: Path) -> LoraConfig:
    """Read the adapter_config.json of a directory; nothing that it names is imported or opened.

    Raises:
        CheckpointError: there is none, or `read_lora_config` refuses it.
    """
    check_permission(directory)
    file = directory / _CONFIG
    if not file.is_file():
        raise CheckpointError(
            "{directory} holds no adapter: there is no {file}. Give the directory that training "
            "wrote, or one of its checkpoint-... directories.",
            directory=directory,
            file=_CONFIG,
        )
    return read_lora_config(file)


def read_adapter(directory: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read an adapter's configuration and weights; they belong together.

    Raises:
        CheckpointError: what the readers of either find, or a rank that no weight has.
    """
    config, weights = read_adapter_config(directory), read_adapter_weights(directory)
    asked = max(config.r, *config.rank_pattern.values(), 0)
    ranks = [len(t) for name, t in weights.items() if re.search("lora_(embedding_)?A", name)]
    if asked > max(_USUAL_RANK, *ranks):  # peft would make weights of it before it reads any
        raise CheckpointError(
            "{file} asks for the rank {asked}, but the weights beside it have ranks of at most "
            "{most}. Copy the adapter's files again.",
            file=directory / _CONFIG,
            asked=asked,
            most=max(ranks, default=0),
        )
    return config, weights


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide what peft warns of needlessly: an old name in transformers, and what is checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        yield


def read_adapter_weights(directory: Path) -> dict[str, Tensor]:
    """Read an adapter's weights, memory-mapped, by their names in the network.

    Raises:
        CheckpointError: no weights, a damaged file, or NaN or infinity in a tensor.
    """
    file = next((directory / name for name in _WEIGHTS if (directory / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            "{directory} has the configuration of an adapter but no weights: one of {names} is "
            "needed. Copy it there, or give another directory.",
            directory=directory,
            names=", ".join(_WEIGHTS),
        )
    # Some versions of peft wrote the magnitudes of DoRA as those of a module.
    weights = {
        name.removeprefix(PREFIX).replace("_magnitude_vector.weight", "_magnitude_vector"): tensor
        for name, tensor in read_tensors(file)
    }
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES or not tensor.ndim:
            raise CheckpointError(
                "{file} holds {name} as {dtype} {shape}; an adapter's weights are matrices in "
                "float32, float16 or bfloat16. Copy the adapter's files again.",
                file=file,
                name=name,
                dtype=tensor.dtype,
                shape=list(tensor.shape),
            )
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointError(
            "{file} holds NaN or infinity: {broken}. Its training diverged, or the file is "
            "damaged; use an earlier checkpoint.",
            file=file,
            broken=counted(broken),
        )
    return weights


def state_keys(network: Any, name: str = "default") -> dict[str, str]:
    """Map each name in the file of a network's adapter to its key in the network's state dict."""
    state = network.state_dict()
    keys = {id(tensor): key for key, tensor in state.items()}
    own = get_peft_model_state_dict(
        network, state_dict=state, adapter_name=name, save_embedding_layers=False
    )
    return {file_name: keys[id(tensor)] for file_name, tensor in own.items()}


def check_fit(
    network: Any, directory: Path, weights: Mapping[str, Tensor], name: str = "default"
) -> None:
    """Check that an adapter's file holds exactly the weights of the adapter in a network.

    Args:
        network: the base network, with the adapter's layers in it.
        directory: of the adapter, for the message.
        weights: what `read_adapter_weights` returned.
        name: of the adapter in the network.

    Raises:
        CheckpointError: names what is missing, unexpected, or of another shape.
    """
    state, own = network.state_dict(), state_keys(network, name)
    # peft also saves an embedding that was resized or has an adapter.
    keys = {key: key for key in weights if key in state} | own
    wrong = [
        f"{name} {list(weights[name].shape)} ≠ {list(state[key].shape)}"
        for name, key in keys.items()
        if name in weights and weights[name].shape != state[key].shape
    ]
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - keys.keys())
    if missing or extra or wrong:
        raise CheckpointError(
            "The adapter in {directory} does not fit the model: {missing} missing; {extra} "
            "unexpected; {wrong} of another shape. It was trained on {base}; give that model, or "
            "the adapter's files as they were written.",
            directory=directory,
            missing=counted(missing),
            extra=counted(extra),
            wrong=counted(wrong),
            base=network.peft_config[name].base_model_name_or_path,
        )


@contextmanager
def explained(
    network: Any, directory: Path, weights: Mapping[str, Tensor], name: str = "default"
) -> Iterator[None]:
    """Let peft put an adapter into a network, and check that it fits; arguments of `check_fit`.

    Raises:
        CheckpointError: it does not fit, or peft refuses it.
    """
    try:
        with quiet_peft():
            yield
    except Exception as error:  # peft fails in many ways where an adapter does not fit
        if name in getattr(network, "peft_config", {}):
            check_fit(network, directory, weights, name)
        raise CheckpointError(
            "The adapter in {directory} cannot be used with this model: {reason}.",
            directory=directory,
            reason=(str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(" ."),
        ) from error
    check_fit(network, directory, weights, name)


def remove_adapter(network: Any, name: str) -> None:
    """Take an adapter out of a network that transformers loaded it into."""
    kind = network.peft_config.pop(name).peft_type.value.lower()
    delete_adapter(network, adapter_name=name, prefix=f"{kind}_")
    if not network.peft_config:
        del network.peft_config
        network._hf_peft_config_loaded = False


def attach_adapter(
    model: Any, directory: Path, *, trainable: bool = False, low_memory: bool = False
) -> PeftModel:
    """Put an adapter from a directory beside a network's layers, in place.

    A quantized layer that the adapter replaces as a whole becomes an `nn.Linear`.

    Args:
        model: BaichuanForCausalLM, quantized or not.
        directory: with adapter_config.json and adapter_model.safetensors (or .bin).
        trainable: whether its weights shall be trained further.
        low_memory: leave a network on the meta device there.

    Returns:
        peft's model around the network.

    Raises:
        CheckpointError: the directory holds no adapter, a damaged one, or one of another network.
    """
    config, weights = read_adapter(directory)
    if is_quantized(model):
        config = with_quantized(config)
        replaced = getattr(config, "modules_to_save", None) or ()
        to_linear(model, model.dtype, lambda name: name.rpartition(".")[2] in replaced)
    with explained(model, directory, weights):
        return PeftModel.from_pretrained(
            model,
            str(directory),
            config=config,
            is_trainable=trainable,
            low_cpu_mem_usage=low_memory,
        )


def load_for_inference(model: Any, directory: Path) -> Any:
    """Return the network with an adapter: merged into float weights, beside quantized ones.

    Merged, it is as fast as without; but rounding a merged weight to 4 or 8 bits again would lose
    part of what was learned.

    Raises:
        CheckpointError: what `attach_adapter` finds, or an adapter that cannot be merged.
    """
    adapted = attach_adapter(model, directory)
    if is_quantized(model):
        return adapted.get_base_model().eval()
    try:
        return adapted.merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            "The adapter in {directory} cannot be merged into the weights: {reason}",
            directory=directory,
            reason=error,
        ) from error
