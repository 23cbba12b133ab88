"""Rows as they lie in files or on the hub, each with its place. Checks no row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its httpx
from pyarrow import ArrowException, RecordBatch
from pyarrow.ipc import open_stream
from pyarrow.parquet import ParquetFile

from baichuan.errors import DataError, DownloadError
from baichuan.language import translate
from baichuan.train.registry import Source

#: Its place (file and row), and what stands there.
Placed = tuple[str, object]
#: The csv module's own limit of 131,072 characters is too low for documents.
_LONGEST_CELL = 2**31 - 1


def rows_of(source: Source) -> Iterator[Placed]:
    """Yield rows in order, as many as the source may give.

    Raises:
        DataError: a file is not what its name says; names file and line.
        DownloadError: the hub does not give the data set.
    """
    every = _hub_rows(source) if source.hub else _file_rows(source.files)
    return islice(every, source.num_samples)


def hub_dataset(source: Source) -> Dataset:
    """Return the split of a data set of the hub; what was fetched is kept by `datasets`.

    Raises:
        DownloadError: it is not there, or it has no such split.
    """
    try:
        found = load_dataset(source.hub, source.subset, data_dir=source.folder, split=source.split)
        if source.split:
            return found
        return found[next(split for split in source.splits if split in found)]
    except StopIteration:
        why = translate("its splits are {splits}", splits=", ".join(map(str, found)))
        raise _not_fetched(source, why) from None
    except (OSError, ValueError, DatasetsError, HTTPError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise _not_fetched(source, why) from error


def _not_fetched(source: Source, why: str) -> DownloadError:
    return DownloadError(
        "The data set {name!r} could not be fetched from the hub ({why}). Give a file of its "
        "rows instead.",
        name=source.hub,
        why=why,
    )


def _file_rows(files: tuple[Path, ...]) -> Iterator[Placed]:
    readers = {
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
        ".arrow": _arrow_rows,
        ".txt": _text_rows,
    }
    for path in files:
        yield from readers.get(path.suffix, _json_rows)(path)


def _hub_rows(source: Source) -> Iterator[Placed]:
    for number, row in enumerate(hub_dataset(source), 1):
        yield _row(source.hub, number), row


def _row(place: object, number: int) -> str:
    return translate("{file}, row {number}", file=place, number=number)


def _line(place: object, number: int) -> str:
    return translate("{file}, line {number}", file=place, number=number)


def _json_rows(path: Path) -> Iterator[Placed]:
    """Read an array of rows, or a row in each line, whatever the name says.

    The array may be the `data` of one object; another object is a row.
    """
    text = _text(path)
    if _has_row_in_each_line(text):
        yield from _json_lines(path, text)
        return
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError("{file} is not JSON: {reason}.", file=path, reason=error) from error
    inner = rows.get("data") if isinstance(rows, dict) else rows
    rows = inner if isinstance(inner, list) else [rows]
    for number, row in enumerate(rows, 1):
        yield _row(path, number), row


def _has_row_in_each_line(text: str) -> bool:
    """Say whether a text is neither an array nor an object that takes all of it."""
    first, _, more = text.strip().partition("\n")
    first = first.rstrip()
    if not first or first.startswith("["):
        return not first
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        return error.pos < len(first)  # at its end it is only unfinished
    return bool(more)


def _json_lines(path: Path, text: str) -> Iterator[Placed]:
    # Not splitlines: it also breaks at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _line(path, number), json.loads(line)
        except ValueError as error:
            raise DataError(
                "{place}: this is not JSON: {reason}.", place=_line(path, number), reason=error
            ) from error


def _csv_rows(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in reader:
            yield _line(path, reader.line_num), row
    except csv.Error as error:
        raise DataError(
            "{place}: this is not CSV: {reason}.",
            place=_line(path, reader.reader.line_num),
            reason=error,
        ) from error


def _parquet_rows(path: Path) -> Iterator[Placed]:
    return _table_rows(path, "Parquet", lambda: ParquetFile(path).iter_batches(1000))


def _arrow_rows(path: Path) -> Iterator[Placed]:
    """Read what `save_to_disk` writes, an Arrow stream."""
    return _table_rows(path, "Arrow", lambda: open_stream(path))


def _table_rows(
    path: Path, kind: str, batches: Callable[[], Iterable[RecordBatch]]
) -> Iterator[Placed]:
    number = 0
    try:
        for batch in batches():
            for row in batch.to_pylist():
                number += 1
                yield _row(path, number), row
    except (OSError, ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            "{file} is not {kind}: {reason}.", file=path, kind=kind, reason=reason
        ) from error


def _text_rows(path: Path) -> Iterator[Placed]:
    """Take each line that is not blank for a document."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield _line(path, number), {"text": line.rstrip("\r")}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError("{file} cannot be read: {reason}.", file=path, reason=error) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            "{place}: this is not UTF-8. Save the file as UTF-8.", place=_line(path, line)
        ) from error
