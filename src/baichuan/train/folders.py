"""From a file or folder to the files of one split: train, validation or test.

a folder of files        data/train-00000-of-00002.parquet, test.jsonl, dev/rows.json
save_to_disk of datasets state.json with the names of .arrow files, or dataset_dict.json with
                         the names of the splits, each a folder
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from baichuan.errors import DataError
from baichuan.json_files import read_json

#: Files that can be read.
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
#: JSON beside the rows that is not rows.
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", _STATE, _SPLITS}
#: How names say which split a file or folder is, as words: the hub's own list. Of a name with
#: several, the first of these counts.
_WORDS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
}
#: How the hub names the files of a split.
_SHARD = re.compile(r"(.+)-\d+-of-\d+\b")


class Found(NamedTuple):
    """Files of one split.

    Attributes:
        split: its name.
        files: in order.
        others: files of other splits, which are not read.
    """

    split: str
    files: tuple[Path, ...]
    others: tuple[Path, ...] = ()


def find_files(path: Path, splits: Sequence[str], *, named: bool) -> Found:
    """Find the files of the first split that is there.

    Args:
        path: a file, a folder of files, or a folder that `save_to_disk` of datasets wrote. A file
            or one saved split is read whatever its name, unless the registry names another split.
        splits: in the order of preference.
        named: the registry names the split, so that it must be there.

    Raises:
        DataError: nothing there can be read, or it is of other splits.
    """
    groups = _groups(path)
    if (path.is_file() or (path / _STATE).is_file()) and (not named or "train" in splits):
        splits = list(groups)
    split = _chosen(splits, groups)
    if split is None:
        raise DataError(
            "{path} has no split {split!r}; it has {present}. Name one as 'split' in "
            "dataset_info.json, or name a file in place of the folder.",
            path=path,
            split=splits[0],
            present=", ".join(groups),
        )
    others = [file for name, files in groups.items() if name != split for file in files]
    return Found(split, tuple(groups[split]), tuple(others))


def _chosen(splits: Sequence[str], groups: Collection[str]) -> str | None:
    """Return the first split that is there, by its name or by the only name with its word."""
    for split in splits:
        alike = [split] if split in groups else [g for g in groups if _split_of(g) == split]
        if alike:
            return alike[0] if len(alike) == 1 else None
    return None


def _readable(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise DataError(
            "{path} cannot be read; files of rows end in {suffixes}.",
            path=path,
            suffixes=", ".join(SUFFIXES),
        )
    return path


def _groups(path: Path) -> Mapping[str, Sequence[Path]]:
    """Return the files of a file or folder by split."""
    if path.is_file():
        return {_name_of_split(path.name) or "train": [_readable(path)]}
    if (path / _SPLITS).is_file():
        names = _read(path / _SPLITS, "splits")
        return {str(name): list(_saved(path / str(name))) for name in names}
    if (path / _STATE).is_file():
        return {_split_of(path.name) or "train": list(_saved(path))}
    groups: dict[str, list[Path]] = {}
    for file in _files(path):
        # A folder's name counts where the file's own says nothing: train/rows.json.
        place = file.relative_to(path)
        split = next(filter(None, map(_name_of_split, reversed(place.parts))), None)
        groups.setdefault(split or "train", []).append(file)
    if not groups:
        raise DataError(
            "{path} holds no file that ends in {suffixes}.",
            path=path,
            suffixes=", ".join(SUFFIXES),
        )
    return groups


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of rows in a folder; else those in its `data` or in folders of splits."""
    entries = sorted(folder.iterdir())
    files = [file for file in entries if file.suffix in SUFFIXES and file.name not in _NOT_ROWS]
    if files:
        yield from files
        return
    for inner in entries:
        if inner.is_dir() and (inner.name == "data" or _split_of(inner.name)):
            yield from _files(inner)


def _name_of_split(name: str) -> str | None:
    """Return the split of a file or folder; of a shard its own name of it: train_sft-00-of-09."""
    split = _split_of(name)
    shard = _SHARD.match(name)
    return shard[1] if split and shard and _split_of(shard[1]) else split


def _split_of(name: str) -> str | None:
    """Return the split that a name has as a word: test-00000-of-00001.parquet, en_dev.json."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in _WORDS.items() if words.intersection(known)), None)


def _saved(folder: Path) -> Iterator[Path]:
    """Yield the files that `Dataset.save_to_disk` wrote, in the order of their rows."""
    for entry in _read(folder / _STATE, "_data_files"):
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise DataError("{path} names no files of rows.", path=folder / _STATE)
        yield folder / entry["filename"]


def _read(path: Path, key: str) -> list[Any]:
    try:
        return list(read_json(path, DataError)[key])
    except (LookupError, TypeError) as error:
        raise DataError("{path} cannot be read: {reason}.", path=path, reason=error) from error
