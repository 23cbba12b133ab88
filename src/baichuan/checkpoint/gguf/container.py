"""The container of GGUF: settings and tensors of a file; no length is believed unchecked.

Written here because gguf's own reader believes lengths: four forged bytes make it fill the memory.
Source of the layout: the GGUF specification, versions 2 and 3, little-endian. Knows no network.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from baichuan.errors import CheckpointError
from baichuan.weights import TensorFile, WeightFiles

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
#: struct's letter of each kind of number, by GGUF's code.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
#: More than any vocabulary has; as many empty texts take half a gigabyte.
_MOST_TEXTS = 1 << 23
_MOST_DIMENSIONS = 4


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
        settings: key to a number, a text, a list of texts or a numpy array of numbers.
        stored: every tensor, in the file's order.
    """

    def __init__(self, path: Path, directory: Path | None = None) -> None:
        """Read the header.

        Args:
            path: of the file.
            directory: where what stands beside the weights of a checkpoint is found.

        Raises:
            CheckpointError: not GGUF, of an unknown version, truncated or damaged.
        """
        self.path, self.directory = path, directory or path.parent
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
        tensors, settings = header.number("Q"), header.number("Q")
        self.settings = dict(header.setting() for _ in range(settings))
        found = dict(header.tensor() for _ in range(tensors))
        alignment = self.settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise header.damaged(f"general.alignment {alignment!r}")
        begin = math.ceil(header.position / alignment) * alignment
        self.stored = {
            name: StoredTensor(tensor.kind, tensor.shape, begin + tensor.offset)
            for name, tensor in found.items()
        }
        for name, tensor in self.stored.items():
            if tensor.offset + math.prod(tensor.stored_shape) > size:
                raise header.damaged(name)


class _Header:
    """A place in the file, and how to read on from it."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self._path, self._content = path, content
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
        """Give the next bytes, none of which are copied before all are known to be there."""
        if count > len(self._content) - self.position:
            raise self.damaged(f"at byte {self.position:,}")
        self.position += count
        return bytes(self._content[self.position - count : self.position])

    def number(self, letter: str) -> Any:
        """Give a number."""
        (value,) = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))
        return value

    def text(self) -> str:
        """Give a text; what is not UTF-8 in it becomes U+FFFD."""
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def setting(self) -> tuple[str, Any]:
        """Give a key and its value."""
        return self.text(), self._value(self.number("I"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise self.damaged(f"at byte {self.position:,}: type {kind}")
        value = self.number(_NUMBERS[kind])
        # The shortest number that float32 stores so: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def _array(self, kind: int, count: int) -> Any:
        if kind == _STRING and count <= _MOST_TEXTS:
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.damaged(f"at byte {self.position:,}: {count:,} of type {kind}")
        dtype = np.dtype(f"<{_NUMBERS[kind]}")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def tensor(self) -> tuple[str, StoredTensor]:
        """Give a tensor's name and place, counted from where the data begin."""
        name = self.text()
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
        return name, StoredTensor(kind, shape, offset)
