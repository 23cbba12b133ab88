"""Writing a changed copy of a checkpoint, tensor by tensor: peak memory is one shard.

The result grows in TARGET.partial (unfinished.py) and is renamed when whole. Killed, it goes on
behind the last finished shard, whose checksum is in its journal. Knows files and names, not what is
done to a tensor (quantize.py, merge.py, gguf/).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from baichuan.checkpoint.unfinished import (
    COPIED,
    INDEX,
    JOURNAL,
    SUMS,
    check_room,
    check_target,
    clear,
    sums_text,
    unfinished,
)
from baichuan.digest import file_digest, files_digest
from baichuan.errors import BaichuanError, CheckpointError, UsageError
from baichuan.files import weights_by_umask
from baichuan.json_files import parse_json
from baichuan.model.configuration import BaichuanConfig
from baichuan.weights import WeightFiles, read_headers, read_tensors

_SHARD_BYTES = 500_000_000
#: Told (bytes of the source finished, all bytes) when all is checked, and after each tensor.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Part:
    """Tensors of the source that are changed together, and the bytes that come of them, about."""

    names: tuple[str, ...]
    stored: int


@dataclass(frozen=True)
class Change:
    """What is done to a checkpoint.

    Attributes:
        parts: everything that is read.
        convert: from a part's tensors to those that are written, by name.
        config: of the result.
        settings: plain data that tells this change from another, for the journal.
        skip: told of parts that an earlier run has finished, their tensors and all of their shard,
            for a change whose parts depend on those before. They come in the given order then, and
            else in that of the files, which reads them faster.
    """

    parts: Sequence[Part]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    config: BaichuanConfig
    settings: Mapping[str, Any]
    skip: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None


def rewrite_checkpoint(
    weights: WeightFiles, target: Path, change: Change, progress: Progress
) -> None:
    """Write a changed copy of a checkpoint.

    Raises:
        CheckpointError: NaN or infinity in the source, or the disk is too small.
        UsageError: the target exists, or another run is writing it.
    """
    check_target(target)
    check_room(target, sum(part.stored for part in change.parts))
    shards = list(_shards(change.parts if change.skip else _in_order_of_files(weights, change)))
    settings = {**change.settings, "source": _source_digest(weights), "shards": len(shards)}
    with unfinished(target) as partial, _explained(target):
        journal = _Journal(partial, settings)
        _write_shards(weights, shards, change, journal, progress)
        _finish(weights.directory, partial, change.config, len(shards), journal)
        partial.rename(target)
        (target / JOURNAL).unlink()


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn what the system says of a full disk, say, into a sentence."""
    try:
        yield
    except BaichuanError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "{file} cannot be written ({reason}). Free some room and give the command again: it "
            "goes on behind the last file that is whole.",
            file=getattr(error, "filename", None) or target,
            reason=getattr(error, "strerror", None) or error,
        ) from error


def _in_order_of_files(weights: WeightFiles, change: Change) -> list[Part]:
    order = {name: place for place, name in enumerate(weights.headers)}
    # A part is complete when its last tensor was read.
    return sorted(change.parts, key=lambda part: max(map(order.__getitem__, part.names)))


def _shards(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Group the parts, in their order, into files of about `_SHARD_BYTES`."""
    shard: list[Part] = []
    size = 0
    for part in parts:
        if shard and size + part.stored > _SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(part)
        size += part.stored
    yield shard


class _Journal:
    """Which shards of an unfinished result are whole, by checksum."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        """Take up the journal of an earlier run, if that had the same source and settings."""
        self.directory, self._settings = directory, settings
        self.sums: dict[str, str] = {}
        earlier = self._read()
        if earlier is not None and earlier["settings"] != settings:
            raise UsageError(
                "{directory} holds an unfinished run with other settings or of another source; "
                "remove it, or give another target.",
                directory=directory,
            )
        if earlier is not None:
            self.sums = earlier["sums"]
        clear(directory, self.sums)
        if earlier is None:
            self._write()

    def _read(self) -> dict[str, Any] | None:
        """Return what an earlier run wrote; None if there is nothing, or it was cut off."""
        try:
            saved = parse_json((self.directory / JOURNAL).read_text("utf-8"))
            whole = isinstance(saved["settings"], dict) and isinstance(saved["sums"], dict)
        except (ValueError, KeyError, TypeError):
            return None
        return saved if whole else None

    def _write(self) -> None:
        content = {"settings": self._settings, "sums": self.sums}
        _write(self.directory / JOURNAL, json.dumps(content, indent=1))

    def has(self, file: str) -> bool:
        """Say whether a shard is there and whole."""
        path = self.directory / file
        return file in self.sums and path.exists() and file_digest(path) == self.sums[file]

    def add(self, file: str) -> None:
        """Record a shard that was just written."""
        self.sums[file] = file_digest(self.directory / file)
        self._write()


def _write_shards(
    weights: WeightFiles,
    shards: list[list[Part]],
    change: Change,
    journal: _Journal,
    progress: Progress,
) -> None:
    """Pass over the source once; tensors of finished shards are skipped unread."""
    total, done = sum(file.path.stat().st_size for file in weights.files), 0
    progress(done, total)
    source = _read(weights, [part for shard in shards for part in shard], change)
    for number, shard in enumerate(shards, start=1):
        file = _file(number, len(shards))
        whole = journal.has(file)
        tensors: dict[str, Tensor] = {}
        if whole and change.skip:
            tensors = dict(read_tensors(journal.directory / file))
        for _ in shard:
            read = next(source)
            if not whole:
                check_finite(weights.directory, read)
                tensors |= change.convert(read)
            elif change.skip:
                change.skip(read, tensors)
            done += sum(tensor.nbytes for tensor in read.values())
            progress(done, total)
        if not whole:
            _save(tensors, journal.directory / file)
            journal.add(file)


def check_finite(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a tensor of a checkpoint holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                "{name} in {directory} holds NaN or infinity: {count} of {total:,} numbers. Its "
                "training diverged, or the file is damaged; fetch it again.",
                name=name,
                directory=directory,
                count=int((~tensor.isfinite()).sum()),
                total=tensor.numel(),
            )


def _read(
    weights: WeightFiles, parts: Sequence[Part], change: Change
) -> Iterator[dict[str, Tensor]]:
    """Give the tensors of each part."""
    if change.skip:
        yield from (weights.read(part.names) for part in parts)
        return
    wanted = {name for part in parts for name in part.names}
    source = ((name, tensor) for name, tensor in weights.tensors() if name in wanted)
    held: dict[str, Tensor] = {}
    for part in parts:
        while not held.keys() >= set(part.names):
            held |= [next(source)]
        yield {name: held.pop(name) for name in part.names}


def _finish(
    source: Path, partial: Path, config: BaichuanConfig, count: int, journal: _Journal
) -> None:
    """Write what stands beside the shards, and check each shard once more."""
    places: dict[str, str] = {}
    for number in range(1, count + 1):
        file = _file(number, count)
        if not journal.has(file):
            raise CheckpointError(
                "{file} is not what was written: is the disk failing?", file=partial / file
            )
        places |= dict.fromkeys(read_headers(partial / file), file)
    total = sum((partial / file).stat().st_size for file in journal.sums)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write(partial / INDEX, json.dumps(index, indent=1))
    config.save_pretrained(partial)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    _write(partial / SUMS, sums_text(journal.sums))


def _file(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def _source_digest(weights: WeightFiles) -> str:
    """Return the digest of all that a result is made of: weights, configuration, what is copied."""
    beside = (weights.directory / name for name in ("config.json", *COPIED))
    files = [*(file.path for file in weights.files), *filter(Path.is_file, beside)]
    try:
        return files_digest(files)
    except OSError as error:
        raise CheckpointError.unreadable(error.filename, error) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; what was written takes the place of `path`."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with _replacing(path) as partial:
        with weights_by_umask(path.parent):
            save_file(tensors, partial, metadata={"format": "pt"})
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    with _replacing(path) as partial:
        partial.write_text(text, "utf-8")
