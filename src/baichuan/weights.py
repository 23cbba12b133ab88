"""Reading weight files: every published layout as one lazy table of named tensors.

The layouts are safetensors, PyTorch's pickles, and shards with an index. Nothing is read but
headers until a tensor is asked for, so the peak memory of a pass over all tensors is one tensor
(one file for pickles in the format before torch 1.6, which cannot be mapped). Pickles are opened
with `weights_only=True` alone: a file that would run code is refused, and so is one whose tensors
or records are larger than the bytes that it has for them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import safe_open
from torch import Tensor

from baichuan.errors import CheckpointError
from baichuan.json_files import read_json

#: In the order of preference: one file, or an index that names the shards.
_LAYOUTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: Tensors in a file; the 13B has 283.
_MOST_TENSORS = 1 << 16
#: Bytes of tensors that one mapping of a file serves, unless one tensor alone has more.
_MAPPED = 1 << 22
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
    missing = [name for name in shards if not _is_file(directory / name)]
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
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError.unreadable(path, error) from error
    content = read_json(path)
    promised = content.get("weight_map") if isinstance(content, dict) else None
    if not _is_strings(promised):
        raise CheckpointError(
            "{path} is not an index of shards: it has no weight_map from the names of tensors to "
            "those of files. Fetch the file again.",
            path=path,
        )
    # A name of more than 255 bytes is none of a file, either.
    outside = sorted(
        {
            name
            for name in promised.values()
            if Path(name).name != name or len(name.encode("utf-8", "surrogatepass")) > 255
        }
    )
    if outside:
        raise CheckpointError(
            "{path} is refused: it names files elsewhere ({names}). "
            "Fetch the checkpoint from where you trust it.",
            path=path,
            names=", ".join(outside[:3]),
        )
    return dict(promised)


def _is_strings(value: object) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_file(path: Path) -> bool:
    """Return whether a path is a file; a name that is too long for a file system is none."""
    try:
        return path.is_file()
    except OSError:
        return False


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
                names = file.keys()
                _check_count(path, len(names))
                return {name: _mapped(file, name).to("meta") for name in names}
        return {name: tensor.to("meta") for name, tensor in _unpickle(path).items()}


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of one weight file, memory-mapped.

    The file is mapped anew for each batch of tensors, for what was read of a mapping counts as this
    process's memory until the mapping is gone.
    """
    with _explained(path):
        if path.suffix == ".safetensors":
            for names in _batches(read_headers(path)):
                with safe_open(path, framework="pt") as file:
                    yield from ((name, _mapped(file, name)) for name in names)
        elif zipfile.is_zipfile(path):
            for names in _batches(read_headers(path)):
                state = _unpickle(path)
                yield from ((name, state[name]) for name in names)
        else:  # the format of torch < 1.6 cannot be mapped
            yield from _unpickle(path).items()


def _batches(headers: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Group names of tensors, in their order, into batches of up to `_MAPPED` bytes."""
    batch: list[str] = []
    size = 0
    for name, header in headers.items():
        if batch and size + header.nbytes > _MAPPED:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += header.nbytes
    if batch:
        yield batch


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
    if mapped:
        _check_records(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, dict):
        raise _no_table(path, type(state).__name__)
    _check_count(path, len(state))
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _no_table(path, f"{name!r}: {type(tensor).__name__}")
        _check_storage(path, name, tensor)
    return state


def _check_records(path: Path) -> None:
    """Refuse a compressed archive, which torch never writes: a megabyte may hold gigabytes."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise CheckpointError(
                "{path} is refused: it is a compressed archive, and torch.save writes none. Ask "
                "for the weights as safetensors.",
                path=path,
            )


def _check_count(path: Path, count: int) -> None:
    if count > _MOST_TENSORS:
        raise CheckpointError(
            "{path} is refused: it holds {count:,} tensors; allowed are {most:,}. Fetch the file "
            "again.",
            path=path,
            count=count,
            most=_MOST_TENSORS,
        )


def _check_storage(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse what a pickle can describe and no weight is, such as a tensor without its bytes."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if plain and not (tensor.is_quantized or tensor.is_complex()):
        held = tensor.untyped_storage().nbytes()
        if tensor.nbytes <= held:
            return
        found = f"{list(tensor.shape)} {tensor.dtype} in {held:,} bytes"
    else:
        found = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}"
    raise CheckpointError(
        "{path} is refused: {name} is no tensor of weights ({found}). Ask for the weights as "
        "safetensors.",
        path=path,
        name=name,
        found=found,
    )


def _no_table(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        "{path} is no table of tensors by name (it holds {found}). Give a file of weights alone, "
        "as save_pretrained writes it.",
        path=path,
        found=found,
    )
