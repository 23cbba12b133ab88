"""Which files of a data set hold which subject's split.

Knows the layouts of the benchmarks' own archives and of the hub's Parquet, by names of files alone;
what is in a file is read by tables.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from baichuan.errors import DataError
from baichuan.evaluate.subjects import BENCHMARKS, Benchmark

_SPLITS = ("dev", "val", "test")
_PARQUET = ".parquet"
#: The hub's configuration that holds the rows of all subjects, with a column that names them.
_ALL = "all"
#: `test-00000-of-00002`, and behind it the hash that the hub once added.
_SHARD = re.compile(
    r"(dev|val|validation|test)(?:-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?)?"
)


@dataclass(frozen=True)
class Table:
    """The files of one subject's split.

    Attributes:
        names: of the files, in the order of their rows; several where they are sharded.
        mixed: whether the rows are of all subjects, told apart by a column `subject`.
    """

    names: tuple[str, ...]
    mixed: bool = False


@dataclass(frozen=True)
class _Key:
    """What files of one table have in common; `count` is of shards where their names say it."""

    root: PurePosixPath
    subject: str
    split: str
    count: int | None = 1


class Tables:
    """The tables among files.

    Args:
        names: of all files.
        place: where they are from, for the user.
        benchmark: which subjects are looked for.
    """

    def __init__(self, names: Iterable[str], place: str, benchmark: Benchmark) -> None:
        self._place = place
        self._benchmark = benchmark
        self._found: dict[_Key, list[tuple[int, str]]] = defaultdict(list)
        for name in names:
            if parsed := _parsed(PurePosixPath(Path(name).as_posix())):
                key, number = parsed
                self._found[key].append((number, name))

    def find(self, subject: str, split: str) -> Table:
        """Return the table of a subject's split.

        Raises:
            DataError: there is none, there are several, shards are missing, or it lies among the
                files of another benchmark.
        """
        own = [key for key in self._found if (key.subject, key.split) == (subject, split)]
        keys = own or [key for key in self._found if (key.subject, key.split) == (_ALL, split)]
        if not keys:
            raise self._missing(subject, split)
        numbered = sorted(pair for key in keys for pair in self._found[key])
        if len(keys) > 1 or len(dict(numbered)) < len(numbered):
            first, second, *_ = sorted(name for _, name in numbered)
            raise DataError(
                "{place} has more than one file for {split} of {subject}: {first} and {second}. "
                "Name the folder of one data set with --data, or move the other file away.",
                place=self._place,
                split=split,
                subject=subject,
                first=first,
                second=second,
            )
        (key,) = keys
        self._require_benchmark(key, numbered[0][1])
        _require_whole(key, numbered)
        return Table(tuple(name for _, name in numbered), mixed=not own)

    def _missing(self, subject: str, split: str) -> DataError:
        return DataError(
            "{place} has no {split}/{subject}_{split}.csv nor {split}/{subject}.csv, and no "
            "{subject}/{split}-00000-of-00001.parquet. Give the folder or archive that holds dev "
            "and {split}, or leave the subject out with --subjects.",
            place=self._place,
            split=split,
            subject=subject,
        )

    def _require_benchmark(self, key: _Key, name: str) -> None:
        """Refuse a subject of another benchmark that has the same name, by what lies beside it."""
        beside = {k.subject for k in self._found if (k.root, k.split) == (key.root, key.split)}
        own = len(beside & self._benchmark.names.keys())
        for other in BENCHMARKS.values():
            if len(beside & other.names.keys()) > own:
                raise DataError(
                    "{file} lies among files of {other}; {benchmark} was asked for. Name the "
                    "folder of {benchmark} with --data.",
                    file=name,
                    other=other.title,
                    benchmark=self._benchmark.title,
                )


def _parsed(path: PurePosixPath) -> tuple[_Key, int] | None:
    """Return the table and the number of the shard that a path stands for; None for others."""
    folder, stem, parquet = path.parent, path.stem, path.suffix == _PARQUET
    split = _split(folder.name)
    if split in _SPLITS:
        if parquet and re.fullmatch(r"\d{4}", stem):
            return _Key(folder.parent.parent, folder.parent.name, split, None), int(stem)
        return _Key(folder.parent, stem.removesuffix(f"_{folder.name}"), split), 0
    shard = _SHARD.fullmatch(stem) if parquet else None
    if shard is None:
        return None
    number, count = (
        int(shard[group] or default) for group, default in (("number", 0), ("count", 1))
    )
    return _Key(folder.parent, folder.name, _split(shard[1]), count), number


def _split(name: str) -> str:
    """Return the benchmarks' name of a split; the hub says validation."""
    return "val" if name == "validation" else name


def _require_whole(key: _Key, numbered: list[tuple[int, str]]) -> None:
    count = len(numbered) if key.count is None else key.count
    missing = sorted(set(range(count)) - dict(numbered).keys())
    if missing:
        raise DataError(
            "{file} is one of {count} shards; number {missing} is missing. Fetch it.",
            file=numbered[0][1],
            count=count,
            missing=missing[0],
        )
