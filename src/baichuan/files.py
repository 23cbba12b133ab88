"""Files that are written whole or not at all, and text with or without a byte order mark."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; a byte order mark at its start is no part of the text.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return path.read_text("utf-8-sig")


def write_at_one_stroke(target: Path, content: bytes) -> None:
    """Write a temporary file beside the target and rename it; on failure nothing is left.

    Raises:
        OSError: the directory is not there or cannot be written to.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
