"""A DeepSpeed file, completed by the flags, and DeepSpeed's processes. Knows no trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from baichuan.errors import UsageError
from baichuan.json_files import parse_json, read_json

#: Without the first, DeepSpeed clips nothing whatever --max_grad_norm says ("auto" is what asks
#: transformers for the flag); without the second, ZeRO-3 ends with its parts in place of a model.
_CLIPPING = "gradient_clipping"
_GATHER = "stage3_gather_16bit_weights_on_model_save"


def read(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Read DeepSpeed's settings.

    Args:
        given: a file's path; or what would be in it, as JSON or parsed.

    Raises:
        UsageError: the file is missing, or holds no JSON object with `zero_optimization`.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if given.lstrip().startswith("{"):
        try:
            content = parse_json(given)
        except ValueError as error:
            raise UsageError(
                "{path} cannot be read: {reason}.", path=given, reason=error
            ) from error
    else:
        content = read_json(Path(given), UsageError)
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization"), dict):
        raise UsageError(
            "{path} holds no settings of DeepSpeed: it must be a JSON object with "
            "zero_optimization, as deepspeed.json.",
            path=given,
        )
    return content


def complete(content: Mapping[str, Any]) -> dict[str, Any]:
    """Let --max_grad_norm decide where a file has no clipping, and have a whole model saved."""
    zero = {_GATHER: True, **content["zero_optimization"]}
    return {_CLIPPING: "auto", **content, "zero_optimization": zero}


def check_agreement(training: TrainingArguments) -> None:
    """Check that file and flags do not contradict each other, before a model is loaded.

    Raises:
        UsageError: they do: names each entry with both values.
    """
    settings = getattr(training, "hf_deepspeed_config", None)
    found = getattr(settings, "mismatches", None)
    if found:
        raise UsageError(
            "The DeepSpeed file and the flags differ: {differences}. Make them equal, or write "
            '"auto" in the file, and the flags decide.',
            differences="; ".join(difference.removeprefix("- ") for difference in found),
        )


def join_processes() -> None:
    """Tell DeepSpeed of the other processes before ZeRO-3 cuts weights that are being loaded.

    accelerate does so with GPUs only; without, each process would take itself for the only one.
    """
    import deepspeed

    deepspeed.init_distributed(auto_mpi_discovery=False)
