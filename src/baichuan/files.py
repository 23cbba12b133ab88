"""Files that are written whole or not at all, their modes, and text with or without a BOM."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; a byte order mark at its start is no part of the text.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return path.read_text("utf-8-sig")


def write_at_one_stroke(target: Path, content: bytes, *, private: bool = False) -> None:
    """Write a temporary file beside the target and rename it; on failure nothing is left.

    A file that was there keeps its mode; the mode of a new one is what the umask says.

    Args:
        target: file to write.
        content: all of it.
        private: let nobody but the owner read a new file.

    Raises:
        OSError: the directory is not there or cannot be written to.
    """
    partial = _temporary_beside(target)
    try:
        with open(partial, "xb", opener=_open_private if private else None) as file:
            file.write(content)
        with suppress(FileNotFoundError):
            partial.chmod(stat.S_IMODE(target.stat().st_mode))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def weights_by_umask(directory: Path) -> Iterator[None]:
    """Let safetensors files that the body writes into a directory have the mode of any new file.

    safetensors writes, since 0.8, a temporary file that its owner alone may read, and renames it.
    """
    before = _safetensors(directory)
    yield
    written = _safetensors(directory).items() - before.items()
    if not written:
        return
    # The mode of an ordinary file: os.umask() cannot be asked without changing it for all threads.
    probe = _temporary_beside(directory / "mode")
    try:
        with probe.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for path, _ in written:
        with suppress(FileNotFoundError):
            path.chmod(mode)


def _safetensors(directory: Path) -> dict[Path, int]:
    """Return the inode of each file, which is another when the file is replaced."""
    found = {}
    for path in directory.glob("*.safetensors*"):
        with suppress(FileNotFoundError):  # another process of a training has just replaced it
            found[path] = path.stat().st_ino
    return found


def _temporary_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
