"""Reading weight files: every published layout as one lazy table of named tensors.

Knows safetensors, PyTorch's zip pickles and shard indices; knows no network. Nothing is read but
headers until a tensor is asked for, so the peak memory of a pass over all tensors is one tensor.
Pickles are opened with `weights_only=True` alone: a file that would run code is refused.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from baichuan.errors import CheckpointError

#: In the order of preference: one file, or an index that names the shards.
_LAYOUTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class TensorFile:
    """One weight file and the shapes of what it holds."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]


class WeightFiles:
    """The weight files of one checkpoint directory.

    Attributes:
        files: every file once, headers checked.
    """

    def __init__(self, directory: str | Path) -> None:
        """Find the files and read their headers.

        Raises:
            CheckpointError: no weights, a missing or truncated file, a pickle that would run code,
                a tensor promised by the index and not held by its shard, or held twice.
        """
        self.directory = Path(directory)
        paths, promised = _locate(self.directory)
        self.files = [TensorFile(path, read_shapes(path)) for path in paths]
        self._check_promises(promised)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape, over all files."""
        return {name: shape for file in self.files for name, shape in file.shapes.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give (name, tensor) one at a time, memory-mapped, in the order of the files."""
        for file in self.files:
            yield from read_tensors(file.path)

    def _check_promises(self, promised: Mapping[str, str]) -> None:
        held = {file.path.name: set(file.shapes) for file in self.files}
        for name, shard in promised.items():
            if name not in held[shard]:
                raise CheckpointError(
                    f"{self.directory / shard} lacks the tensor {name} that the index places "
                    "there: fetch the file again."
                )
        seen: dict[str, str] = {}
        for shard, names in held.items():
            for name in names:
                if name in seen:
                    raise CheckpointError(
                        f"{name} is in both {seen[name]} and {shard} of {self.directory}: files of "
                        "two checkpoints are mixed; fetch the directory afresh."
                    )
                seen[name] = shard


def _locate(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Find weight files; with an index, what tensor it promises in which shard."""
    layout = next((name for name in _LAYOUTS if (directory / name).is_file()), None)
    if layout is None:
        raise CheckpointError(
            f"{directory} holds no weights: one of {', '.join(_LAYOUTS)} is needed. "
            "Give the directory of a checkpoint."
        )
    if not layout.endswith(".index.json"):
        return [directory / layout], {}
    try:
        promised = dict(json.loads((directory / layout).read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory / layout} is not an index of shards ({error!r}): fetch the file again."
        ) from error
    shards = sorted(set(promised.values()))
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(shards)} shards that {layout} names: "
            f"{', '.join(missing)}. Fetch them."
        )
    return [directory / name for name in shards], promised


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what readers raise about a bad file into a sentence."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: its pickle holds more than tensors and would run code of its "
            "author if loaded. Nothing was run. Ask for the weights as safetensors."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({path.stat().st_size:,} bytes; truncated or damaged: "
            f"{_first_line(error)}). Fetch the file again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of one weight file without its data.

    Raises:
        CheckpointError: truncated, damaged, or a pickle that would run code.
    """
    with _explained(path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return {name: tuple(tensor.shape) for name, tensor in _unpickle(path).items()}


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Give (name, tensor) of one weight file, memory-mapped."""
    with _explained(path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a dict: only .keys() iterates)
                    yield name, file.get_tensor(name)
        else:
            yield from _unpickle(path).items()


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Map a PyTorch state dict; mmap keeps the data on disk."""
    # Files of torch < 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError("it is no table of tensors")
    return state
