"""Reading weight files: every published layout as one lazy table of named tensors.

Knows safetensors, PyTorch's pickles and shard indices; knows no network. Nothing is read but
headers until a tensor is asked for, so the peak memory of a pass over all tensors is one tensor
(one file for pickles in the format before torch 1.6, which cannot be mapped). Pickles are opened
with `weights_only=True` alone: a file that would run code is refused.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from baichuan.errors import CheckpointError
from baichuan.files import read_text

#: In the order of preference: one file, or an index that names the shards.
_LAYOUTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: How a file begins that git stores in place of a large one.
_POINTER = b"version https://git-lfs"
#: What torch says of a pickle that asks for a class or function which is no part of a tensor.
_FOREIGN = (
    "Unsupported global",
    "Unsupported class",
    "unrecognized function",
    "blocked",
    "weights_only=True``",
)


@dataclass(frozen=True)
class TensorFile:
    """One weight file and what it holds: tensors on the meta device, by name."""

    path: Path
    headers: Mapping[str, Tensor]


class WeightFiles:
    """The weight files of one checkpoint directory.

    Attributes:
        files: every file once, headers checked.
    """

    def __init__(
        self,
        directory: str | Path,
        safetensors: bool | None = None,
        variant: str | None = None,
    ) -> None:
        """Find the files and read their headers.

        Args:
            directory: of the checkpoint.
            safetensors: read only these (True) or only pickles (False); None prefers safetensors.
            variant: what `save_pretrained(variant=...)` put into the names of the files.

        Raises:
            CheckpointError: no weights, a missing or truncated file, a pickle that would run code,
                a tensor promised by the index and not held by its shard, or held twice.
        """
        self.directory = Path(directory)
        paths, promised = _locate(self.directory, safetensors, variant)
        self.files = [TensorFile(path, read_headers(path)) for path in paths]
        self._check_promises(promised)

    @property
    def headers(self) -> dict[str, Tensor]:
        """Name to shape and dtype, as tensors on the meta device, over all files."""
        return {name: header for file in self.files for name, header in file.headers.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape, over all files."""
        return {name: tuple(header.shape) for name, header in self.headers.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give (name, tensor) one at a time, memory-mapped, in the order of the files."""
        for file in self.files:
            yield from read_tensors(file.path)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Give some tensors by name, memory-mapped, wherever they are."""
        wanted = set(names)
        return {
            name: tensor
            for file in self.files
            if wanted & file.headers.keys()
            for name, tensor in read_tensors(file.path)
            if name in wanted
        }

    def _check_promises(self, promised: Mapping[str, str]) -> None:
        held = {file.path.name: set(file.headers) for file in self.files}
        for name, shard in promised.items():
            if name not in held[shard]:
                raise CheckpointError(
                    "{file} lacks the tensor {name} that the index places there: fetch the file "
                    "again.",
                    file=self.directory / shard,
                    name=name,
                )
        seen: dict[str, str] = {}
        for shard, names in held.items():
            for name in names:
                if name in seen:
                    raise CheckpointError(
                        "{name} is in both {one} and {other} of {directory}: files of two "
                        "checkpoints are mixed; fetch the directory afresh.",
                        name=name,
                        one=seen[name],
                        other=shard,
                        directory=self.directory,
                    )
                seen[name] = shard


def _locate(
    directory: Path, safetensors: bool | None, variant: str | None
) -> tuple[list[Path], dict[str, str]]:
    """Find weight files; with an index, what tensor it promises in which shard."""
    layouts = [
        _of_variant(name, variant)
        for name in _LAYOUTS
        if safetensors is None or ("safetensors" in name) == safetensors
    ]
    layout = next((name for name in layouts if (directory / name).is_file()), None)
    if layout is None:
        if not directory.is_dir():
            raise CheckpointError(
                "There is no directory {directory}. Check the spelling.", directory=directory
            )
        raise CheckpointError(
            "{directory} holds no weights: one of {names} is needed. "
            "Give the directory of a checkpoint.",
            directory=directory,
            names=", ".join(layouts),
        )
    if not layout.endswith(".json"):
        return [directory / layout], {}
    promised = _read_index(directory / layout)
    shards = sorted(set(promised.values()))
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            "{directory} lacks {count} of {total} shards that {index} names: {names}. Fetch them.",
            directory=directory,
            count=len(missing),
            total=len(shards),
            index=layout,
            names=", ".join(missing),
        )
    return [directory / name for name in shards], promised


def _of_variant(name: str, variant: str | None) -> str:
    """Put a variant before the last suffix of a name, as transformers does."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _read_index(path: Path) -> dict[str, str]:
    """Read which tensor is in which shard, and let no shard lie outside the directory."""
    try:
        _check_pointer(path)
        promised = json.loads(read_text(path))["weight_map"]
        shards = {os.fspath(name) for name in promised.values()}
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError.unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "{path} is not an index of shards ({reason!r}): fetch the file again.",
            path=path,
            reason=error,
        ) from error
    outside = sorted(name for name in shards if Path(name).name != name)
    if outside:
        raise CheckpointError(
            "{path} is refused: it names files elsewhere ({names}). "
            "Fetch the checkpoint from where you trust it.",
            path=path,
            names=", ".join(outside[:3]),
        )
    return dict(promised)


def _check_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                "{path} is a git-lfs pointer, not the file that it stands for: run `git lfs pull` "
                "in its directory, or fetch the file again.",
                path=path,
            )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what readers raise about a bad file into a sentence."""
    try:
        _check_pointer(path)
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError("There is no file {path}. Fetch it.", path=path) from error
    except PermissionError as error:
        raise CheckpointError.unreadable(path, error) from error
    except Exception as error:  # a damaged pickle can fail in any way; see the fuzz test
        if any(words in str(error) for words in _FOREIGN):
            raise CheckpointError(
                "{path} is refused: its pickle holds more than tensors and would run code of its "
                "author if loaded. Nothing was run. Ask for the weights as safetensors.",
                path=path,
            ) from error
        raise CheckpointError(
            "{path} cannot be read ({size:,} bytes; truncated or damaged: {reason}). "
            "Fetch the file again.",
            path=path,
            size=path.stat().st_size,
            reason=_reason(error),
        ) from error


def _reason(error: Exception) -> str:
    """Give the first sentence of what a reader says, without torch's advice to load unsafely."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0].rstrip(".")


def read_headers(path: Path) -> dict[str, Tensor]:
    """Read what one weight file holds without its data: tensors on the meta device, by name.

    Raises:
        CheckpointError: truncated, damaged, or a pickle that would run code.
    """
    with _explained(path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:  # its tensors are mapped, not read
                return {name: _mapped(file, name).to("meta") for name in file.keys()}  # noqa: SIM118
        return {name: tensor.to("meta") for name, tensor in _unpickle(path).items()}


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Give (name, tensor) of one weight file, memory-mapped.

    The file is mapped anew for each tensor, for what was read of a mapping counts as this process's
    memory until the mapping is gone.
    """
    with _explained(path):
        if path.suffix == ".safetensors":
            for name in read_headers(path):
                with safe_open(path, framework="pt") as file:
                    yield name, _mapped(file, name)
        elif zipfile.is_zipfile(path):
            for name in read_headers(path):
                yield name, _unpickle(path)[name]
        else:  # the format of torch < 1.6 cannot be mapped
            yield from _unpickle(path).items()


def _mapped(file: Any, name: str) -> Tensor:
    """Return a tensor of an open safetensors file."""
    try:
        tensor: Tensor = file.get_tensor(name)
    except (TypeError, ValueError) as error:
        if "determine the shape" not in str(error):
            raise
        # torch has swallowed Ctrl+C: it takes what is raised within a storage for a missing method.
        raise KeyboardInterrupt from error
    return tensor


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Map a PyTorch state dict; mmap keeps the data on disk."""
    # Files of torch < 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, dict):
        raise _no_table(path, type(state).__name__)
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _no_table(path, f"{name!r}: {type(tensor).__name__}")
    return state


def _no_table(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        "{path} is no table of tensors by name (it holds {found}). Give a file of weights alone, "
        "as save_pretrained writes it.",
        path=path,
        found=found,
    )
