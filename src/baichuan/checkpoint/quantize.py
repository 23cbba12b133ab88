"""Quantizing a checkpoint on disk, tensor by tensor: peak memory is one shard, not the model.

The result grows in TARGET.partial and is renamed when whole. Killed, it goes on behind the last
finished shard, whose checksum is in its journal; a lock beside it keeps a second run out. Knows
files and names; the rounding is quant's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from baichuan.errors import CheckpointError, UsageError
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import check_tensors, read_config, refuse_quantized
from baichuan.model.quantization import BaichuanQuantizationConfig, plan_for
from baichuan.quant.plan import Plan, linears, quantized
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles

_SHARD_BYTES = 500_000_000
_JOURNAL, _INDEX, _SUMS = "journal.json", "model.safetensors.index.json", "SHA256SUMS"
_COPIED = (
    *("generation_config.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)

#: The source's tensors that one file of the result holds, each with its scheme (None: as it is).
Shard = dict[str, Scheme | None]


def quantize_checkpoint(
    source: Path,
    target: Path,
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a quantized copy of a checkpoint.

    Args:
        source: directory of a checkpoint in float32, bfloat16 or float16.
        target: directory to make; it must not exist.
        plan: which matrices, and how.
        progress: told (bytes of the source finished, all bytes) when all is checked, and after each
            tensor.

    Raises:
        CheckpointError: the source is damaged or quantized already, the disk is too small.
        UsageError: the target exists, or another run is writing it.
    """
    refuse_existing(target)
    config = read_config(source)
    weights = WeightFiles(source)
    refuse_quantized(config, weights)
    plan = plan_for(config, plan)
    headers = {name: header for name, header in weights.headers.items() if "inv_freq" not in name}
    schemes = _schemes(config, plan, source, headers)
    partial = target.with_name(target.name + ".partial")
    _check_room(partial, headers, schemes)
    shards = list(_shards(headers, schemes))
    with _alone(partial):
        refuse_existing(target)  # another run may have ended just now
        source_files = _fingerprint(weights)
        settings = {"plan": plan.to_dict(), "source": source_files, "shards": len(shards)}
        journal = _Journal(partial, settings)
        _write_shards(weights, shards, journal, progress)
        _finish(source, partial, config, plan, shards, journal)
        partial.rename(target)


def refuse_existing(target: Path) -> None:
    """Raise UsageError if there is something where a result shall be."""
    if target.exists():
        raise UsageError(
            "{target} exists; give a name that is free, or remove it first.", target=target
        )


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Make the directory of an unfinished result, and keep other runs out of it."""
    path = partial.with_name(partial.name + ".lock")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0).acquire()
    except Timeout as error:
        raise UsageError(
            "Another run is writing {directory}; wait until it ends, or give another target.",
            directory=partial,
        ) from error
    except OSError as error:
        raise CheckpointError(
            "{directory} cannot be made ({reason}). Give a target elsewhere.",
            directory=partial,
            reason=error,
        ) from error
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                path.unlink()


def _schemes(
    config: BaichuanConfig, plan: Plan, source: Path, headers: Mapping[str, Tensor]
) -> dict[str, Scheme]:
    """Give the scheme of each weight to quantize, having checked that all tensors are there."""
    with torch.device("meta"):
        network: nn.Module = BaichuanForCausalLM(config)
    check_tensors(source, {name: tuple(h.shape) for name, h in headers.items()}, network)
    return {f"{name}.weight": scheme for name, scheme in linears(network, plan).items()}


def _stored(header: Tensor, scheme: Scheme | None) -> int:
    """Bytes of one tensor in the result, about."""
    if scheme is None:
        return header.nbytes
    return int(header.numel() * scheme.stored_bits(header.shape[-1]) / 8)


def _check_room(
    partial: Path, headers: Mapping[str, Tensor], schemes: Mapping[str, Scheme]
) -> None:
    needed = sum(_stored(header, schemes.get(name)) for name, header in headers.items())
    held = sum(file.stat().st_size for file in partial.glob("*")) if partial.exists() else 0
    existing = next(p for p in partial.absolute().parents if p.exists())
    free = shutil.disk_usage(existing).free
    if free + held < needed * 1.02:
        raise CheckpointError(
            "{directory} has {free:.1f} GB free; the quantized checkpoint needs {needed:.1f} GB. "
            "Free some, or give a directory on another disk.",
            directory=existing,
            free=free / 1e9,
            needed=needed / 1e9,
        )


def _shards(headers: Mapping[str, Tensor], schemes: Mapping[str, Scheme]) -> Iterator[Shard]:
    """Group the source's tensors, in its order, into files of about `_SHARD_BYTES`."""
    shard: Shard = {}
    size = 0
    for name, header in headers.items():
        stored = _stored(header, schemes.get(name))
        if shard and size + stored > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = schemes.get(name)
        size += stored
    yield shard


class _Journal:
    """Which shards of an unfinished result are whole, by checksum."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        """Take up the journal of an earlier run, if that had the same source and plan."""
        self.directory, self._settings = directory, settings
        self.sums: dict[str, str] = {}
        earlier = self._read()
        if earlier is None:
            self._write()
        elif earlier["settings"] == settings:
            self.sums = earlier["sums"]
        else:
            raise UsageError(
                "{directory} holds an unfinished run with other settings or of another source; "
                "remove it, or give another target.",
                directory=directory,
            )

    def _read(self) -> dict[str, Any] | None:
        try:
            return cast(
                "dict[str, Any]", json.loads((self.directory / _JOURNAL).read_text("utf-8"))
            )
        except (FileNotFoundError, ValueError):  # none, or cut off by a loss of power: begin anew
            return None

    def _write(self) -> None:
        content = {"settings": self._settings, "sums": self.sums}
        _write(self.directory / _JOURNAL, json.dumps(content, indent=1))

    def has(self, file: str) -> bool:
        """Say whether a shard is there and whole."""
        path = self.directory / file
        return file in self.sums and path.exists() and checksum(path) == self.sums[file]

    def add(self, file: str) -> None:
        """Record a shard that was just written."""
        self.sums[file] = checksum(self.directory / file)
        self._write()


def _write_shards(
    weights: WeightFiles,
    shards: list[Shard],
    journal: _Journal,
    progress: Callable[[int, int], None],
) -> None:
    """Pass over the source once; tensors of finished shards are skipped unread."""
    total, done = sum(file.path.stat().st_size for file in weights.files), 0
    progress(done, total)
    wanted = {name for shard in shards for name in shard}
    source = ((name, tensor) for name, tensor in weights.tensors() if name in wanted)
    for number, shard in enumerate(shards, start=1):
        file = _file(number, len(shards))
        whole = journal.has(file)
        tensors: dict[str, Tensor] = {}
        for _ in shard:
            name, tensor = next(source)
            if not whole:
                tensors |= _converted(name, tensor, shard[name])
            done += tensor.nbytes
            progress(done, total)
        if not whole:
            _save(tensors, journal.directory / file)
            journal.add(file)


def _converted(name: str, tensor: Tensor, scheme: Scheme | None) -> dict[str, Tensor]:
    if scheme is None:
        return {name: tensor}
    module = name.removesuffix(".weight")
    try:
        layer = quantized(tensor, scheme)
    except UsageError as error:
        raise CheckpointError("{name}: {reason}", name=name, reason=error) from error
    return {f"{module}.{part}": content for part, content in layer.state_dict().items()}


def _finish(
    source: Path,
    partial: Path,
    config: BaichuanConfig,
    plan: Plan,
    shards: list[Shard],
    journal: _Journal,
) -> None:
    """Write what stands beside the shards, and check each shard once more."""
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = _file(number, len(shards))
        if not journal.has(file):
            raise CheckpointError(
                "{file} is not what was written: is the disk failing?", file=partial / file
            )
        for name, scheme in shard.items():
            module = name.removesuffix(".weight")
            names = [name] if scheme is None else [f"{module}.codes", f"{module}.scales"]
            places |= dict.fromkeys(names, file)
    total = sum((partial / file).stat().st_size for file in journal.sums)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write(partial / _INDEX, json.dumps(index, indent=1))
    config.quantization_config = BaichuanQuantizationConfig.of(plan)
    config.save_pretrained(partial)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    # In the form that `sha256sum -c` reads.
    _write(partial / _SUMS, "".join(f"{s}  {file}\n" for file, s in sorted(journal.sums.items())))
    (partial / _JOURNAL).unlink()


def _file(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def _fingerprint(weights: WeightFiles) -> dict[str, list[int]]:
    """Tell one source from another without reading it: sizes and times of its files."""
    stats = {file.path.name: file.path.stat() for file in weights.files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def checksum(path: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; what was written takes the place of `path`."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "{file} cannot be written ({reason}). Free some room and give the command again: it "
            "goes on behind the last file that is whole.",
            file=path,
            reason=error,
        ) from error


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with _replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    with _replacing(path) as partial:
        partial.write_text(text, "utf-8")
