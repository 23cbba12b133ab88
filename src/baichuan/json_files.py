"""JSON of files that someone else wrote: bounded in size and depth, and refused in a sentence.

Python's own reader takes a file of any size into memory and fails on deep nesting with a
RecursionError, which is no ValueError; what it has read may be nested too deep for `repr`, copying
or pickling, which fail later and elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from baichuan.errors import BaichuanError, CheckpointError
from baichuan.files import read_text
from baichuan.language import phrase

#: Bytes. The largest JSON file of a checkpoint is a tokenizer.json, of up to some 20 MB.
_MOST_BYTES = 1 << 28
_MOST_DEPTH = 100


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; any fault is a ValueError.

    Raises:
        ValueError: the text is not JSON, or is nested deeper than 100.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MOST_DEPTH}") from None
    _check_depth(value)
    return value


def read_json(path: Path, error: type[BaichuanError] = CheckpointError) -> Any:
    """Return what a JSON file holds; a byte order mark at its start is passed over.

    Args:
        path: file to read.
        error: class of the errors.

    Raises:
        BaichuanError: `error`: the file is not there, cannot be read, is no regular file, is larger
            than 256 MiB, is not UTF-8 or not JSON, or is nested deeper than 100.
    """
    try:
        size = _size(path)
        if size > _MOST_BYTES:
            raise error(
                phrase(
                    "{path} has {size:,} bytes; a JSON file of at most {most:,} is read. Fetch "
                    "the file again."
                ),
                path=path,
                size=size,
                most=_MOST_BYTES,
            )
        return parse_json(read_text(path))
    except BaichuanError:  # which may be an OSError or a ValueError
        raise
    except OSError as reason:
        raise error.unreadable(path, reason) from reason
    except ValueError as reason:
        raise error(
            phrase("{path} is not JSON ({reason}; {size:,} bytes). Fetch the file again."),
            path=path,
            reason=reason,
            size=size,
        ) from reason


def read_object(path: Path, error: type[BaichuanError] = CheckpointError) -> dict[str, Any]:
    """Return the object that a JSON file holds; else as `read_json`.

    Raises:
        BaichuanError: `error`: as `read_json`, or the file holds something that is not an object.
    """
    content = read_json(path, error)
    if not isinstance(content, dict):
        raise error(phrase("{path} holds no table of settings. Fetch the file again."), path=path)
    return content


def _size(path: Path) -> int:
    """Return the size of a regular file: others, such as a pipe, may have no end.

    Raises:
        OSError: it is none.
    """
    if not path.is_file():
        path.stat()  # which says what is wrong
        raise OSError(None, "not a regular file", os.fspath(path))
    return path.stat().st_size


def _check_depth(value: Any) -> None:
    level = _containers([value])
    for _ in range(_MOST_DEPTH + 1):
        if not level:
            return
        level = _containers(
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
        )
    raise ValueError(f"nested deeper than {_MOST_DEPTH}")


def _containers(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]
