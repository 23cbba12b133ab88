"""Loading a network with every tensor accounted for, through transformers' own `from_pretrained`.

Knows directories, hub names and which tensors a network expects; the files themselves are
weights.py's. transformers would fill a missing tensor with random numbers and say so in a log; here
that is an error that names the tensor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from baichuan.errors import CheckpointError
from baichuan.hub import local_directory
from baichuan.model.configuration import BaichuanConfig
from baichuan.weights import WeightFiles

#: The 7B's code kept its table of rotary frequencies among the weights; it is computed here.
_IGNORED = r"rotary_emb\.inv_freq$"
_NAMED = 4


class BaichuanPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Base of all Baichuan networks: what transformers asks for, and a strict `from_pretrained`."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanDecoderLayer"]  # noqa: RUF012  (transformers' own shape)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [_IGNORED]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as transformers does, but with nothing missing, nothing extra and nothing executed.

        Takes transformers' arguments. Files ending in `.py` are neither fetched nor run.

        Raises:
            CheckpointError: a tensor is missing, extra or of another shape; a file is missing,
                truncated, damaged, or a pickle that would run code.
            DownloadError: a hub name that is not on this machine and could not be fetched.
        """
        if pretrained_model_name_or_path is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        directory = local_directory(pretrained_model_name_or_path, **kwargs)
        config = kwargs.get("config")
        if not isinstance(config, BaichuanConfig):
            config = BaichuanConfig.from_pretrained(config or directory)
        cls._check_files(config, directory)
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            directory, *args, output_loading_info=True, weights_only=True, **_local_only(kwargs)
        )
        _check_report(directory, info)
        return (model, info) if with_info else model

    @classmethod
    def _check_files(cls, config: BaichuanConfig, directory: Path) -> None:
        """Compare names and shapes in the files with the network's, before any weight is read."""
        held = WeightFiles(directory).shapes
        if getattr(config, "quantization_config", None) is not None:
            return  # the quantizer swaps modules first; transformers' report is checked after it
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in cls(config).state_dict().items()}
        compare_shapes(directory, held, expected)


def compare_shapes(
    directory: Path,
    held: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that a checkpoint holds exactly the tensors that a network expects.

    Raises:
        CheckpointError: names the first few that are missing, extra, or of another shape.
    """
    held = {name: shape for name, shape in held.items() if not name.endswith("rotary_emb.inv_freq")}
    missing = sorted(expected.keys() - held.keys())
    extra = sorted(held.keys() - expected.keys())
    wrong = [
        f"{name} is {list(held[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in held and held[name] != shape
    ]
    _raise_if_any(directory, missing, extra, wrong)


def _check_report(directory: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers reports any tensor not loaded as it should."""
    wrong = [str(key) for key in info.get("mismatched_keys", ())]
    wrong += [str(message) for message in info.get("error_msgs", ())]
    _raise_if_any(
        directory, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), sorted(wrong)
    )


def _raise_if_any(directory: Path, missing: list[str], extra: list[str], wrong: list[str]) -> None:
    faults = [
        f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for what, names in (("missing", missing), ("extra", extra), ("of a wrong shape", wrong))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"The tensors in {directory} are not those of the network that its config.json "
            f"describes: {'; '.join(faults)}. Nothing was loaded; fetch the files again, or the "
            "config.json that belongs to them."
        )


def _local_only(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Drop the arguments that said where on the hub to look: the directory is found already."""
    hub = ("revision", "token", "cache_dir", "force_download", "subfolder", "local_files_only")
    return {key: value for key, value in kwargs.items() if key not in hub}
