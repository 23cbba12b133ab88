"""From a data set's name to where its rows are and how they are laid out.

A name is looked for in `dataset_info.json` (the registry that users of LLaMA-Factory have), then as
a file or directory, then among the names that the README used, then on the hub. Reads no row.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baichuan.errors import DataError, UsageError
from baichuan.files import read_text
from baichuan.train.recipe import FORMATS

REGISTRY = "dataset_info.json"
#: Files that can be read.
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
#: The README's own data sets, where no registry says otherwise.
_KNOWN = {
    "alpaca_gpt4_en": {"hf_hub_url": "llamafactory/alpaca_gpt4_en"},
    "alpaca_gpt4_zh": {"hf_hub_url": "llamafactory/alpaca_gpt4_zh"},
}


@dataclass(frozen=True)
class Layout:
    """How a row is laid out.

    Attributes:
        formatting: alpaca, sharegpt or openai; None is seen from each row's own columns.
        columns: what a column is for to its name, where that is not the usual one.
        tags: the same of the keys and roles inside a conversation.
        ranking: rows hold a better and a worse answer.
    """

    formatting: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ranking: bool = False


@dataclass(frozen=True)
class Source:
    """Where rows are.

    Attributes:
        name: as the user wrote it.
        layout: of its rows.
        files: in this order; empty for a data set of the hub.
        hub: its name there.
        subset, folder: which part of it.
        split: likewise; `train` mostly.
        num_samples: at most so many rows, the first ones.
    """

    name: str
    layout: Layout
    files: tuple[Path, ...] = ()
    hub: str | None = None
    subset: str | None = None
    folder: str | None = None
    split: str = "train"
    num_samples: int | None = None


def find(names: Sequence[str], directory: str) -> list[Source]:
    """Find each data set.

    Args:
        names: as typed.
        directory: where dataset_info.json lies, and the files that it names.

    Raises:
        UsageError: a name that there is not.
        DataError: the registry cannot be read, or an entry cannot be.
    """
    root = Path(directory).expanduser()
    registry = _read(root / REGISTRY)
    return [_find(name, root, registry) for name in names]


def _find(name: str, root: Path, registry: Mapping[str, Any]) -> Source:
    if name in registry:
        return _from_entry(name, root, registry[name])
    for path in (Path(name).expanduser(), root / name):
        if path.exists():
            return Source(name, Layout(), _files(path))
    if name in _KNOWN:
        return _from_entry(name, root, _KNOWN[name])
    if name.count("/") == 1 and not name.endswith(SUFFIXES):
        return Source(name, Layout(), hub=name)
    near = difflib.get_close_matches(name, [*registry, *_KNOWN], n=1)
    if near:
        raise UsageError(
            "There is no data set {name!r}. Is {near!r} meant?", name=name, near=near[0]
        )
    raise UsageError(
        "There is no data set {name!r}: it is not in {registry}, no file, and no name on the hub "
        "such as 'owner/name'.",
        name=name,
        registry=root / REGISTRY,
    )


def _read(path: Path) -> Mapping[str, Any]:
    """Read the registry; one that is not there is empty."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError("{path} cannot be read: {reason}.", path=path, reason=error) from error
    if not isinstance(entries, dict):
        raise DataError("{path} must hold one object, of names and entries.", path=path)
    return entries


def _from_entry(name: str, root: Path, entry: object) -> Source:
    if not isinstance(entry, dict):
        raise _wrong_entry(name, entry)
    layout = Layout(
        formatting=entry.get("formatting"),
        columns=entry.get("columns") or {},
        tags=entry.get("tags") or {},
        ranking=bool(entry.get("ranking", False)),
    )
    if layout.formatting not in (None, *FORMATS):
        raise _wrong_entry(name, {"formatting": layout.formatting})
    place: dict[str, Any] = {
        "subset": entry.get("subset"),
        "folder": entry.get("folder"),
        "split": entry.get("split") or "train",
        "num_samples": entry.get("num_samples"),
    }
    if entry.get("file_name"):
        path = root / entry["file_name"]
        if not path.exists():
            raise DataError(
                "The data set {name!r} is said to be in {path}, which is not there.",
                name=name,
                path=path,
            )
        return Source(name, layout, _files(path), **place)
    if entry.get("hf_hub_url"):
        return Source(name, layout, hub=entry["hf_hub_url"], **place)
    raise _wrong_entry(name, entry)


def _files(path: Path) -> tuple[Path, ...]:
    """Give the files of rows that a path stands for."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                "{path} cannot be read; files of rows end in {suffixes}.",
                path=path,
                suffixes=", ".join(SUFFIXES),
            )
        return (path,)
    files = tuple(
        file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and file.name != REGISTRY
    )
    if not files:
        raise DataError(
            "{path} holds no file that ends in {suffixes}.",
            path=path,
            suffixes=", ".join(SUFFIXES),
        )
    return files


def _wrong_entry(name: str, entry: object) -> DataError:
    return DataError(
        "The entry of {name!r} in dataset_info.json cannot be used: {entry!r:.120}. It needs "
        "file_name or hf_hub_url, and a formatting of {formats}, or none.",
        name=name,
        entry=entry,
        formats=", ".join(FORMATS),
    )
