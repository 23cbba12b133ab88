"""From a data set's name to where its rows are and how they are laid out.

A name is looked for in `dataset_info.json` (the registry that users of LLaMA-Factory have), then as
a file or directory, then among the names that the README used, then on the hub. Reads no row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baichuan.errors import DataError, UsageError
from baichuan.json_files import read_json
from baichuan.train.folders import SUFFIXES, find_files
from baichuan.train.recipe import FORMATS

REGISTRY = "dataset_info.json"
#: The README's own data sets, where no registry says otherwise.
_KNOWN = {
    "alpaca_gpt4_en": {"hf_hub_url": "llamafactory/alpaca_gpt4_en"},
    "alpaca_gpt4_zh": {"hf_hub_url": "llamafactory/alpaca_gpt4_zh"},
}
#: Keys of an entry, the types of their values, and these in JSON.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "file_name": ((str, list), '"...", ["...", "..."]'),
    "hf_hub_url": ((str,), '"owner/name"'),
    "formatting": ((str,), ", ".join(FORMATS)),
    "columns": ((dict,), '{"prompt": "...", ...}'),
    "tags": ((dict,), '{"role_tag": "...", ...}'),
    "ranking": ((bool,), "true, false"),
    "subset": ((str,), '"..."'),
    "split": ((str,), '"train", "test", ...'),
    "folder": ((str,), '"..."'),
    "num_samples": ((int,), "1, 2, 3, ..."),
}
#: Other places of the same rows, and what only 2023 had.
_WITHOUT_EFFECT = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_sha1")
_COLUMNS = (
    *("prompt", "query", "response", "history", "messages", "system", "text"),
    *("chosen", "rejected", "kto_tag", "tools", "images", "videos", "audios"),
)
_NEEDED_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag")
_TAGS = (*_NEEDED_TAGS, "system_tag", "observation_tag", "function_tag")
#: Which split is read where none is named: of a data set for training, and of one for evaluation.
TRAINING = ("train",)
EVALUATION = ("validation", "test", "train")


@dataclass(frozen=True)
class Layout:
    """How a row is laid out.

    Attributes:
        formatting: alpaca, sharegpt or openai; None is seen from each row's own columns.
        columns: what a column is for to its name; where any is named, no other column is read.
            Empty for the usual names.
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
        others: files beside them that are not read, being of other splits.
        hub: its name there.
        subset, folder: which part of it.
        split: which is read; of the hub, None for the first of `splits` that is there.
        splits: in the order of preference.
        num_samples: at most so many rows, the first ones.
    """

    name: str
    layout: Layout
    files: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    hub: str | None = None
    subset: str | None = None
    folder: str | None = None
    split: str | None = None
    splits: tuple[str, ...] = TRAINING
    num_samples: int | None = None


def find(names: Sequence[str], directory: str, splits: tuple[str, ...] = TRAINING) -> list[Source]:
    """Find each data set.

    Args:
        names: as typed.
        directory: where dataset_info.json lies, and the files that it names.
        splits: which to read where the registry names none, in the order of preference.

    Raises:
        UsageError: a name that there is not.
        DataError: the registry cannot be read, or an entry or a folder cannot be.
    """
    root = Path(directory).expanduser()
    registry = _read(root / REGISTRY)
    try:
        return [_find(name, root, registry, splits) for name in names]
    except OSError as error:  # a directory that may not be read, a name that cannot be one
        raise DataError.unreadable(error.filename or root, error) from error


def _find(name: str, root: Path, registry: Mapping[str, Any], splits: tuple[str, ...]) -> Source:
    if name in registry:
        return _from_entry(name, root, registry[name], splits)
    for path in (Path(name).expanduser(), root / name):
        if path.exists():
            return _local(Source(name, Layout(), splits=splits), [path])
    if name in _KNOWN:
        return _from_entry(name, root, _KNOWN[name], splits)
    if name.count("/") == 1 and not name.endswith(SUFFIXES):
        return Source(name, Layout(), hub=name, splits=splits)
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
    entries = read_json(path, DataError)
    if not isinstance(entries, dict):
        raise DataError("{path} must hold one object, of names and entries.", path=path)
    return entries


def _from_entry(name: str, root: Path, entry: object, splits: tuple[str, ...]) -> Source:
    if not isinstance(entry, dict) or not (entry.get("file_name") or entry.get("hf_hub_url")):
        raise DataError(
            "The entry of {name!r} in dataset_info.json cannot be used: {entry!r:.120}. It needs "
            "file_name or hf_hub_url.",
            name=name,
            entry=entry,
        )
    _check_keys(name, "", entry, (*_KINDS, *_WITHOUT_EFFECT))
    given = {key: value for key, value in entry.items() if value is not None}
    for key, value in given.items():
        if key in _KINDS and not _is_allowed(key, value):
            raise _wrong_value(name, key, value, _KINDS[key][1])
    source = Source(
        name,
        Layout(
            given.get("formatting"),
            _names(name, "columns", given, _COLUMNS),
            _names(name, "tags", given, _TAGS),
            given.get("ranking", False),
        ),
        subset=given.get("subset"),
        folder=given.get("folder"),
        split=given.get("split"),
        splits=splits,
        num_samples=given.get("num_samples"),
    )
    files = given.get("file_name") or []
    if not files:
        return replace(source, hub=given["hf_hub_url"])
    if source.subset is not None:
        raise _wrong_value(name, "subset", source.subset, "null, beside file_name")
    several = [files] if isinstance(files, str) else files
    return _local(source, [_inside(name, root, file, source.folder) for file in several])


def _is_allowed(key: str, value: Any) -> bool:
    """Check the type of a value, and its range where it has one."""
    if type(value) not in _KINDS[key][0]:
        return False
    return value in FORMATS if key == "formatting" else key != "num_samples" or value >= 1


def _inside(name: str, root: Path, file: object, folder: str | None) -> Path:
    """Return the path of a file or folder that the registry names."""
    if not isinstance(file, str):
        raise _wrong_value(name, "file_name", file, _KINDS["file_name"][1])
    path = root / file / (folder or "")
    if not path.exists():
        raise DataError(
            "The data set {name!r} is said to be in {path}, which is not there.",
            name=name,
            path=path,
        )
    return path


def _local(source: Source, paths: Sequence[Path]) -> Source:
    """Add the files that paths stand for."""
    splits = (source.split,) if source.split else source.splits
    found = [find_files(path, splits, named=source.split is not None) for path in paths]
    return replace(
        source,
        split=found[0].split,
        files=tuple(file for part in found for file in part.files),
        others=tuple(file for part in found for file in part.others),
    )


def _names(
    name: str, key: str, entry: Mapping[str, Any], allowed: Sequence[str]
) -> Mapping[str, str]:
    """Return the columns or tags that an entry names; null names none."""
    names = {what: column for what, column in entry.get(key, {}).items() if column is not None}
    _check_keys(name, f"{key}.", names, allowed)
    for what, column in names.items():
        if not isinstance(column, str):
            raise _wrong_value(name, f"{key}.{what}", column, '"..."')
    if key == "tags" and names and not names.keys() >= set(_NEEDED_TAGS):
        shown = ", ".join(f'"{tag}": "..."' for tag in _NEEDED_TAGS)
        raise _wrong_value(name, key, names, f"{{{shown}, ...}}")
    return names


def _check_keys(name: str, where: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    """Name the nearest key to one that there is not: it would silently have no effect."""
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1, cutoff=0)
            raise DataError(
                "The entry of {name!r} in dataset_info.json has an unknown key, {key!r}. Is "
                "{near!r} meant? Allowed are {allowed}.",
                name=name,
                key=where + key,
                near=where + near[0],
                allowed=", ".join(allowed),
            )


def _wrong_value(name: str, key: str, given: object, allowed: str) -> DataError:
    return DataError(
        "{key} of {name!r} in dataset_info.json is {given!r:.120}; allowed is {allowed}.",
        key=key,
        name=name,
        given=given,
        allowed=allowed,
    )
