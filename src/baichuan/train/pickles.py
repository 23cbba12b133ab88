"""Pickles of a training's checkpoint, opened so that no code in them runs.

DeepSpeed and torch.distributed.checkpoint unpickle without restriction. Here every `torch.load` of
the process is restricted to tensors, plain values and the classes that these engines save, and the
metadata of torch.distributed.checkpoint, which it does not read by `torch.load`, is checked before.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

from baichuan.errors import CheckpointError

#: What makes torch.load restricted, whatever its caller asks for; and what forbids that.
_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: Classes in DeepSpeed's files. Their constructors keep what they are given and do nothing else.
_DEEPSPEED = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
#: Classes and functions in the metadata of torch.distributed.checkpoint.
_METADATA = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch.serialization", "_get_layout"), ("torch", "Size"), ("torch", "device")),
    *(("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"), ("collections", "OrderedDict")),
}
#: Instructions that no engine writes, with a number that the reader allocates memory for.
_MEMO = {"PUT", "LONG_BINPUT"}
_SUFFIXES = {".pt", ".pth", ".bin"}
#: Not read by any resumed run; it holds classes of transformers.
_UNREAD = "training_args.bin"
#: Where torch names what a pickle asks for.
_ASKED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")


class ForbiddenError(pickle.UnpicklingError):
    """A pickle asks for something outside the allowed list; the argument is its name."""


@contextmanager
def restricted(*, deepspeed: bool) -> Iterator[None]:
    """Let `torch.load` build nothing but tensors, plain values and what the engines save.

    Args:
        deepspeed: allow DeepSpeed's classes too, which must be installed.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORBID)}
    os.environ[_FORCE] = "1"
    classes = [getattr(importlib.import_module(m), c) for m, c in _DEEPSPEED if deepspeed]
    try:
        with ExitStack() as stack:
            stack.enter_context(safe_globals())  # numpy's arrays, of random number generators
            stack.enter_context(torch.serialization.safe_globals(classes))
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check(checkpoint: Path) -> None:
    """Check the pickles of a checkpoint before a model is loaded; tensors are not read.

    To be called inside `restricted`.

    Raises:
        CheckpointError: a file asks for code to be run, or is damaged.
    """
    for file in sorted(path for pattern in ("*", "*/*") for path in checkpoint.glob(pattern)):
        reader = _reader(file)
        if reader is None:
            continue
        try:
            if not file.is_file():  # a pipe would never end
                raise ValueError("not a regular file")
            reader(file)
        except Exception as error:  # a hostile pickle fails in any way
            raise refusal(file, error) from error


def refusal(file: Path, error: BaseException) -> CheckpointError:
    """Return the error for a file, or a checkpoint, that cannot be unpickled."""
    asked = _asked(error)
    if asked is not None:
        return CheckpointError(
            "{file} asks to run {name}, which no checkpoint of a training needs; nothing of it was "
            "run. Resume from a checkpoint of your own, or train anew with --overwrite_output_dir.",
            file=file,
            name=asked,
        )
    # torch's own words end in advice to load the file without restriction.
    torchs = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
    reason = "no pickle of tensors" if torchs else str(error).strip().partition("\n")[0]
    return CheckpointError(
        "{file} cannot be resumed from: it is damaged, or of another training ({reason}). Name "
        "another checkpoint with --resume_from_checkpoint, or train anew with "
        "--overwrite_output_dir.",
        file=file,
        reason=reason or type(error).__name__,
    )


def _asked(error: BaseException) -> str | None:
    if isinstance(error, ForbiddenError):
        return str(error)
    found = _ASKED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return found and found[1]


def _reader(file: Path) -> Any:
    if file.name.endswith(".metadata"):
        return _read_metadata
    return _read_tensors if file.suffix in _SUFFIXES and file.name != _UNREAD else None


def _read_tensors(file: Path) -> None:
    mapped = zipfile.is_zipfile(file)
    torch.load(file, map_location="meta", weights_only=True, mmap=mapped)


def _read_metadata(file: Path) -> None:
    content = file.read_bytes()
    if any(code.name in _MEMO for code, _, _ in pickletools.genops(content)):
        raise ValueError("instructions that no training writes")
    _Metadata(io.BytesIO(content)).load()


class _Metadata(pickle.Unpickler):
    """Checks names and builds nothing: what stands for an object ignores what it is given."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _METADATA:
            raise ForbiddenError(f"{module}.{name}")
        return _Inert


class _Inert:
    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...
