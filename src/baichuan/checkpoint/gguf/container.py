"""The container of GGUF: metadata and tensors of a file; no length is believed unchecked.

Written here because gguf's own reader believes lengths: four forged bytes make it fill the memory.
Source of the layout: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from baichuan.checkpoint.gguf.metadata import Metadata
from baichuan.errors import CheckpointError
from baichuan.language import translate
from baichuan.weights import TensorFile, WeightFiles

_Value = TypeVar("_Value")

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
#: struct's letter of each kind of number, by GGUF's code.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
#: Of a header: bytes, strings, and keys or tensors. The largest vocabularies take 30 MB and 0.8
#: million strings; a sparse file may claim any number.
_MOST_BYTES, _MOST_STRINGS, _MOST_NAMES = 1 << 27, 1 << 21, 1 << 16
_MOST_DIMENSIONS = 4
_MOST_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file.

    Attributes:
        kind: type of its blocks.
        shape: [rows, columns] or [columns], of numbers.
        offset: bytes from the beginning of the file.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in bytes: [rows, bytes of a row]."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return (*self.shape[:-1], self.shape[-1] // block * size)


class GgufWeights(WeightFiles):
    """A GGUF file as weights of one file: its tensors by their own names, as bytes.

    Attributes:
        path: of the file.
        directory: where what stands beside the weights of a checkpoint is found.
        metadata: of the file, by key.
        stored: every tensor, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Args:
            path: of the file.

        Raises:
            CheckpointError: not GGUF, of an unknown version, truncated or damaged.
        """
        self.path, self.directory = path, path.parent
        try:
            self._read()
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError.unreadable(path, error) from error
        headers = {
            name: torch.empty(tensor.stored_shape, dtype=torch.uint8, device="meta")
            for name, tensor in self.stored.items()
        }
        self.files = [TensorFile(path, headers)]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give (name, bytes [rows, bytes of a row]) one at a time, memory-mapped."""
        for name, tensor in self.stored.items():
            # Mapped anew for each, for what was read of a mapping counts as this process's memory.
            mapped = np.memmap(self.path, np.uint8, "c", tensor.offset, tensor.stored_shape)
            yield name, torch.from_numpy(mapped)

    def _read(self) -> None:
        size = self.path.stat().st_size
        mapped = np.memmap(self.path, np.uint8, "r") if size else np.empty(0, np.uint8)
        header = _Header(self.path, mapped.data)
        if header.take(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(
                "{path} is not a GGUF file: it does not begin with 'GGUF'. Fetch it again, or give "
                "the directory of a checkpoint.",
                path=self.path,
            )
        version = header.number("I")
        if version not in _VERSIONS:
            raise CheckpointError(
                "{path} is GGUF of version {version}, or big-endian; versions 2 and 3, "
                "little-endian, can be read. Fetch a newer file.",
                path=self.path,
                version=version,
            )
        tensors, values = header.number("Q"), header.number("Q")
        self.metadata = Metadata(self.path, header.table(values, lambda _: header.value()))
        found = header.table(tensors, header.tensor)
        alignment = self.metadata.integer("general.alignment", 1, _MOST_ALIGNMENT, 32)
        if alignment & (alignment - 1):
            raise self.metadata.wrong("general.alignment", translate("a power of two"))
        begin = math.ceil(header.position / alignment) * alignment
        self.stored = {
            name: StoredTensor(tensor.kind, tensor.shape, begin + tensor.offset)
            for name, tensor in found.items()
        }
        end = begin
        for name, tensor in sorted(self.stored.items(), key=lambda item: item[1].offset):
            if tensor.offset < end or tensor.offset % alignment:
                raise header.damaged(f"{name}: offset {tensor.offset - begin:,}")
            end = tensor.offset + math.prod(tensor.stored_shape)
            if end > size:
                raise header.damaged(name)


class _Header:
    """A place in the file, and how to read on from it."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self._path, self._content = path, content
        self._strings = 0
        self.position = 0

    def damaged(self, what: str) -> CheckpointError:
        """Say that something cannot be."""
        return CheckpointError(
            "{path} is truncated or damaged ({what}; {size:,} bytes). Fetch the file again.",
            path=self._path,
            what=what,
            size=len(self._content),
        )

    def take(self, count: int) -> bytes:
        """Return the next bytes, none of which are copied before all are known to be there."""
        if count > min(len(self._content), _MOST_BYTES) - self.position:
            raise self.damaged(f"at byte {self.position:,}")
        self.position += count
        return bytes(self._content[self.position - count : self.position])

    def number(self, letter: str) -> Any:
        """Give a number."""
        (value,) = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))
        return value

    def string(self) -> str:
        """Return a string; what is not UTF-8 in it becomes U+FFFD."""
        self._strings += 1
        if self._strings > _MOST_STRINGS:
            raise self.damaged(f"at byte {self.position:,}: more than {_MOST_STRINGS:,} strings")
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def table(self, count: int, read: Callable[[str], _Value]) -> dict[str, _Value]:
        """Return so many names, each once, with what `read` makes of the bytes behind it."""
        if count > _MOST_NAMES:
            raise self.damaged(f"at byte {self.position:,}: {count:,} keys or tensors")
        found: dict[str, _Value] = {}
        for _ in range(count):
            name = self.string()
            if name in found:
                raise self.damaged(f"{name}: twice")
            found[name] = read(name)
        return found

    def value(self) -> Any:
        """Return a value of any type."""
        return self._value(self.number("I"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise self.damaged(f"at byte {self.position:,}: type {kind}")
        value = self.number(_NUMBERS[kind])
        # The shortest number that float32 stores so: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def _array(self, kind: int, count: int) -> Any:
        if kind == _STRING and count <= _MOST_STRINGS:
            return [self.string() for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.damaged(f"at byte {self.position:,}: {count:,} of type {kind}")
        dtype = np.dtype(f"<{_NUMBERS[kind]}")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def tensor(self, name: str) -> StoredTensor:
        """Return a tensor's type, shape and offset, which counts from where the data begin."""
        dimensions = self.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"{name}: {dimensions} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in GGML_QUANT_SIZES:
            raise CheckpointError(
                "{path} holds {name} in a type (number {kind}) that this version of the package "
                "gguf does not know: pip install -U gguf",
                path=self._path,
                name=name,
                kind=kind,
            )
        kind = GGMLQuantizationType(kind)
        if shape[-1] % GGML_QUANT_SIZES[kind][0] or not all(shape):
            raise self.damaged(f"{name}: {kind.name} {list(shape)}")
        return StoredTensor(kind, shape, offset)
