"""Files of a data set: in a folder, an archive or on the hub, and read as cells of text.

Knows CSV and Parquet; no layout of files (layouts.py) and no question. Archives
are read where they lie: nothing is unpacked, and no code of a data set is run (a loading script
would be; what it reads is an archive beside it, which is read here).
"""

from __future__ import annotations

import csv
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from baichuan.errors import DataError, UsageError
from baichuan.hub import data_directory

#: Names of files to what gives their bytes.
Files = dict[str, Callable[[], bytes]]
#: The number of the line that a row ends in, and its cells.
Line = tuple[int, list[str]]

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PARQUET = ".parquet"
_DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
#: Four choices in one column, and answers by their number, as the hub keeps MMLU.
_CHOICES, _ANSWER = "choices", "answer"
_NUMBERS = ("id", _ANSWER)
_LETTERS = "ABCD"


def open_files(source: str) -> Files:
    """Find the tables of a data set: CSV files, else what is in archives, else Parquet files.

    Args:
        source: a folder, an archive, or the name of a data set on the hub.

    Raises:
        DataError: there are none.
        DownloadError: the data set could not be fetched.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _archive(path)
    directory = path if path.is_dir() else data_directory(source)
    files = _folder(directory, ".csv")
    if not files:
        for archive in sorted(p for p in directory.rglob("*") if p.name.endswith(_ARCHIVES)):
            files |= _archive(archive)
    files = files or _folder(directory, _PARQUET)
    if not files:
        raise DataError(
            "{place} holds no .csv and no .parquet files and no archive of any; give the folder or "
            "archive of the data set.",
            place=source,
        )
    return files


def lines_of(name: str, content: bytes) -> Iterator[Line]:
    """Give a file's rows; those of Parquet as a CSV file would have them, below a header.

    Raises:
        DataError: it is not what its name says.
        UsageError: it is Parquet, and pyarrow is not installed.
    """
    read = _parquet_lines if name.endswith(_PARQUET) else _csv_lines
    return read(name, content)


def _csv_lines(name: str, content: bytes) -> Iterator[Line]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            "{file}, line {line}: this is not UTF-8. Save the file as UTF-8, or fetch it again.",
            file=name,
            line=line,
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(
            "{file}, line {line}: this is not CSV ({reason}). Fetch the file again.",
            file=name,
            line=reader.line_num,
            reason=error,
        ) from error


def _parquet_lines(name: str, content: bytes) -> Iterator[Line]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "{file} is Parquet, which is read by pyarrow, and that is not installed. Install it "
            "with: pip install 'baichuan-lm[eval]'",
            file=name,
        ) from error
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (OSError, pyarrow.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError("{file} is not Parquet: {reason}.", file=name, reason=reason) from error
    columns = [column.lower() for column in table.column_names]
    yield 1, [cell for column in columns for cell in (_LETTERS if column == _CHOICES else [column])]
    for line, row in enumerate(table.rename_columns(columns).to_pylist(), 2):
        cells: list[str] = []
        for column, value in row.items():
            cells += _choices(name, line, value) if column == _CHOICES else [_cell(column, value)]
        yield line, cells


def _choices(name: str, line: int, value: Any) -> list[str]:
    given = value if isinstance(value, Sequence) else []
    if len(given) != len(_LETTERS):
        raise DataError(
            "{file}, line {line}: there are {count} choices; there must be four.",
            file=name,
            line=line,
            count=len(given),
        )
    return [_cell(_CHOICES, choice) for choice in given]


def _cell(column: str, value: Any) -> str:
    if column in _NUMBERS and isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes floats of a column with a gap
    if column == _ANSWER and type(value) is int and 0 <= value < len(_LETTERS):
        return _LETTERS[value]
    return "" if value is None else str(value)


def _folder(directory: Path, suffix: str) -> Files:
    return {str(file): file.read_bytes for file in sorted(directory.rglob(f"*{suffix}"))}


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open an archive, and turn what is wrong with it into a sentence."""
    try:
        kind = zipfile.ZipFile if zipfile.is_zipfile(path) else tarfile.open
        with kind(path) as archive:
            yield archive
    except _DAMAGES as error:
        raise DataError(
            "{file} is no .zip and no .tar archive, or it is damaged. Give a folder, an archive, "
            "or a data set's name on the hub.",
            file=path,
        ) from error


def _archive(path: Path) -> Files:
    """Find the tables of an archive; each is read when it is asked for.

    A compressed .tar has no index, so its tables are read at once.
    """
    with _opened(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            names = archive.namelist()
        else:
            names = [member.name for member in archive if member.isfile()]
        names = list(filter(_is_table, names))
        if isinstance(archive, tarfile.TarFile) and path.suffix != ".tar":
            return {f"{path}/{name}": partial(bytes, _content(archive, name)) for name in names}
    return {f"{path}/{name}": partial(_member, path, name) for name in names}


def _member(path: Path, name: str) -> bytes:
    with _opened(path) as archive:
        return _content(archive, name)


def _content(archive: zipfile.ZipFile | tarfile.TarFile, name: str) -> bytes:
    if isinstance(archive, zipfile.ZipFile):
        return archive.read(name)
    file = archive.extractfile(name)
    assert file is not None, "directories and links are no data"
    return file.read()


def _is_table(name: str) -> bool:
    """Leave out what macOS adds to archives."""
    return re.search(r"(^|/)(?!\._)[^/]*\.(csv|parquet)$", name) is not None
