"""From a name to a model and its tokenizer; the one loader behind every command.

Chooses dtype and device where the caller does not. Knows no format (weights.py) and no layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from transformers.utils import logging

from baichuan.errors import CheckpointError, DownloadError, UsageError
from baichuan.hub import DEMO, HUB_ARGUMENTS, local_directory
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaiChuanForCausalLM, BaichuanForCausalLM
from baichuan.model.pretrained import read_config
from baichuan.model.quantization import need_peft
from baichuan.model.registration import register
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.quant.plan import use_huge_pages
from baichuan.quant.scheme import Scheme

#: What other loaders call some arguments.
_ELSEWHERE = {
    **dict.fromkeys(("quantize", "quantization", "load_in_4bit", "load_in_8bit"), "bits"),
    "torch_dtype": "dtype",
    "device_map": "device",
    "lora": "adapter",
    "peft": "adapter",
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    bits: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
    huge_pages: bool = False,
    progress: bool = False,
    **hub: Any,
) -> tuple[BaichuanForCausalLM, BaichuanTokenizer]:
    """Load a model and its tokenizer.

    Args:
        name_or_path: a checkpoint's directory, a hub name, or None (or `demo`) for the demo model.
        dtype: `"float32"`, `"bfloat16"`, `"float16"`, a torch dtype, or `"auto"` for the
            checkpoint's own. By default the checkpoint's own, with two exceptions: float16 becomes
            bfloat16 on a CPU (of equal size; few CPUs compute in float16), and the demo model is
            float32, being too small to gain from less.
        device: `"cpu"`, `"cuda"`, `"cuda:1"`, `"auto"` (spread over what there is), ...; by default
            `"auto"` where there is an accelerator and `"cpu"` elsewhere.
        bits: 8, 4 or 3 quantizes while loading; the original weights stay on the disk, mapped, so
            that memory holds little more than the result. A checkpoint quantized before needs no
            `bits`.
        adapter: directory of a LoRA adapter: merged into float weights, beside quantized ones.
            Without `name_or_path`, the model that it was trained on is loaded. Needs peft.
        huge_pages: copy quantized weights on a CPU into pages of 2 MB. Tokens then come faster; but
            loading takes seconds longer, and the weights are not shared with other processes.
        progress: show a bar while quantizing.
        hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`, `subfolder`,
            as transformers takes them.

    Raises:
        CheckpointError: the files are incomplete, damaged, unsafe, or of another model.
        DownloadError: the model is neither here nor to be had from the hub.
        UsageError: an argument, a dtype or bits that there are not, a device that this machine has
            not, or `bits` for a checkpoint that is quantized otherwise.
    """
    register()
    _check_arguments(name_or_path, hub)
    if bits is not None:
        Scheme.of_bits(bits)  # refused before anything is fetched or read
    device = _device(device)
    if adapter is not None and name_or_path is None:
        name_or_path = base_of_adapter(Path(adapter), **hub)
    given = None if dtype is None else _dtype(dtype)
    directory = local_directory(DEMO if name_or_path is None else name_or_path, **hub)
    config = read_config(directory)
    if given is None:
        given = torch.float32 if directory == DEMO else _default_dtype(config, device)
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    tokenizer.pad_within(config.vocab_size)
    # Saved again, a 7B then keeps the name by which other programs know one.
    network = BaiChuanForCausalLM if config.position_embedding == "rope" else BaichuanForCausalLM
    with _without_bars():
        model = _network(network, directory, config, given, device, bits, progress)
    if adapter is not None:
        need_peft()
        from baichuan.model.adapters import load_for_inference

        model = load_for_inference(model, Path(adapter))
    if huge_pages:
        use_huge_pages(model)
    return model, tokenizer


def _check_arguments(name_or_path: object, hub: Mapping[str, object]) -> None:
    if not (name_or_path is None or isinstance(name_or_path, (str, os.PathLike))):
        raise UsageError(
            "name_or_path is {given!r}; allowed is the directory of a checkpoint, a hub name, or "
            "None for the demo model.",
            given=name_or_path,
        )
    for given in sorted(hub.keys() - set(HUB_ARGUMENTS)):
        allowed = [name for name in signature(load).parameters if name != "hub"] + list(
            HUB_ARGUMENTS
        )
        meant = _ELSEWHERE.get(given) or next(iter(get_close_matches(given, allowed)), None)
        if meant is not None:
            raise UsageError(
                "load() has no argument {given!r}; did you mean {meant!r}?",
                given=given,
                meant=meant,
            )
        raise UsageError(
            "load() has no argument {given!r}; there are {allowed}.",
            given=given,
            allowed=", ".join(allowed),
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch transformers' progress bars off: mapped weights load at once, quantizing has a bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_draft(
    name_or_path: str | os.PathLike[str],
    tokenizer: BaichuanTokenizer,
    *,
    device: str | torch.device | None = None,
) -> BaichuanForCausalLM:
    """Load a small model that is to guess tokens for a large one.

    Args:
        name_or_path: a checkpoint's directory or a hub name.
        tokenizer: the large model's.
        device: the large model's.

    Raises:
        UsageError: the checkpoint has another vocabulary.
        BaichuanError: what `load` finds wrong.
    """
    draft, own = load(name_or_path, device=device)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            "The vocabulary of the draft model {draft} is not that of the model it is to guess "
            "for; give a small checkpoint with the same tokenizer.",
            draft=name_or_path,
        )
    return draft


def _network(
    network: type[BaichuanForCausalLM],
    directory: Path,
    config: BaichuanConfig,
    dtype: str | torch.dtype,
    device: str,
    bits: int | None,
    progress: bool,
) -> BaichuanForCausalLM:
    """Load the weights, and quantize them if they are not and shall be."""
    if bits is None or _quantized(config, bits):
        loaded = network.from_pretrained(directory, config=config, dtype=dtype, device_map=device)
        return cast(BaichuanForCausalLM, loaded)
    # As they lie in the file, so that nothing is copied before it is quantized.
    model = cast(
        BaichuanForCausalLM, network.from_pretrained(directory, config=config, dtype="auto")
    )
    if not _quantized(model.config, bits):  # what the original quantized shows by its tensors alone
        model.quantize(bits, progress=progress)
    if isinstance(dtype, torch.dtype):
        model.to(dtype)
    return cast(BaichuanForCausalLM, model.to(_first(device)))


def base_of_adapter(directory: Path, **hub: Any) -> str:
    """Return the name of the model that an adapter was trained on, fetched if need be.

    Args:
        directory: of the adapter.
        hub: of `local_directory`.

    Raises:
        UsageError: peft is not installed, or the adapter does not say.
        CheckpointError: the directory holds no adapter.
        DownloadError: the model is neither here nor to be had from the hub.
    """
    need_peft()
    from baichuan.model.adapters import read_adapter_config

    base = read_adapter_config(directory).base_model_name_or_path
    if not base:
        raise UsageError(
            "The adapter in {directory} does not say on which model it was trained; name the "
            "model, too.",
            directory=directory,
        )
    try:
        local_directory(base, **hub)
    except (CheckpointError, DownloadError) as error:
        raise DownloadError(
            "{reason}\n{file} says as base_model_name_or_path that the adapter was trained on "
            "{base!r}. If that model lies elsewhere now, name it: --model, in Python the first "
            "argument of load.",
            reason=error,
            file=directory / "adapter_config.json",
            base=base,
        ) from error
    return str(base)


def _quantized(config: BaichuanConfig, bits: int) -> bool:
    """Say whether a checkpoint is quantized to `bits` already; refuse one with other bits."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return False
    held = settings.get("bits") if isinstance(settings, dict) else settings.plan.scheme.bits
    if held != bits:
        raise UsageError(
            "bits is {bits}, but the checkpoint is quantized already (int{held}). Leave bits out, "
            "or give the original weights.",
            bits=bits,
            held=held,
        )
    return True


def _first(device: str) -> str:
    """Name one device: quantized weights are small, they are not spread."""
    kind = torch.accelerator.current_accelerator()
    return (kind.type if kind else "cpu") if device == "auto" else device


def _dtype(given: str | torch.dtype) -> str | torch.dtype:
    dtype = _DTYPES.get(given, given) if isinstance(given, str) else given
    if dtype == "auto" or dtype in _DTYPES.values():
        return dtype
    raise UsageError(
        "dtype is {given!r}; allowed is one of {allowed} or 'auto'.",
        given=given,
        allowed=", ".join(_DTYPES),
    )


def _default_dtype(config: BaichuanConfig, device: str) -> str | torch.dtype:
    if device == "cpu" and config.dtype == torch.float16:
        return torch.bfloat16
    return "auto"


def _device(given: str | torch.device | None) -> str:
    """Name a device that this machine has; `"auto"` only where there is a choice."""
    if not torch.accelerator.is_available():
        allowed, default = ["cpu"], "cpu"
    else:
        kind = torch.accelerator.current_accelerator()
        assert kind is not None, "one is available"
        count = torch.accelerator.device_count()
        allowed = ["cpu", kind.type, *(f"{kind.type}:{i}" for i in range(count))]
        default = "auto"
    if given is None or str(given) == "auto":
        return default
    if str(given) not in allowed:
        raise UsageError(
            "device is {given!r}; this machine has {allowed} (or give 'auto'). "
            "A GPU that is missing here is missing to torch: see `baichuan info`.",
            given=str(given),
            allowed=", ".join(allowed),
        )
    return str(given)
