"""Files that are written whole or not at all, their modes, and text with or without a BOM.

A process that is killed leaves temporary files. The next one that writes the same target removes
them; a lock, which ends with its process, tells them from those of a process at work.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: no lock tells which temporary files are stale, so all stay
    fcntl = None

#: How safetensors names its temporary files, and the longest header that it reads.
_SAFETENSORS_TEMPORARY = re.compile(r"\.tmp[0-9A-Za-z]{6}")
_MOST_HEADER = 100_000_000


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; a byte order mark at its start is no part of the text.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return path.read_text("utf-8-sig")


def check_writable(target: Path) -> None:
    """Check, before hours of work, that a file can be written there.

    Raises:
        OSError: the directory is not there or cannot be written to, or the target is a directory.
    """
    if _is_special(target):
        return
    directory = Path(os.path.realpath(target)).parent
    if not directory.is_dir():
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(target))
    if not may_write(directory):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(target))


def may_write(directory: Path) -> bool:
    """Say whether this process may make files in a directory, and its file system takes any."""
    by_effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=by_effective)


def write_at_one_stroke(target: Path, content: bytes, *, private: bool = False) -> None:
    """Write a temporary file beside the target and rename it; on failure nothing is left.

    A file that was there keeps its mode; the mode of a new one is what the umask says. A symbolic
    link stays one: the file that it names is written. Pipes and devices are written to.

    Args:
        target: file to write.
        content: all of it.
        private: let nobody but the owner read a new file.

    Raises:
        OSError: the directory is not there or cannot be written to, or the disk is full.
    """
    if _is_special(target):
        target.write_bytes(content)
        return
    target = Path(os.path.realpath(target))
    remove_stale(target)
    partial, file = _create_beside(target, private)
    try:
        with file:
            file.write(content)
            file.flush()
            with suppress(FileNotFoundError):
                partial.chmod(stat.S_IMODE(target.stat().st_mode))
            if fcntl is None:  # Windows renames no open file
                file.close()
            partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def remove_stale(target: Path) -> None:
    """Remove temporary files that killed processes left beside a target."""
    pattern = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{8}")
    for path in _matching(target.parent, pattern):
        with suppress(OSError), path.open("r+b") as file:
            if _locked(file, wait=False):
                path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock: an empty file, which is removed at the end.

    Raises:
        TimeoutError: another run holds it.
        OSError: it cannot be made, or a file of someone else has its name.
    """
    if not is_lock(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    with FileLock(path, timeout=0):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                path.unlink()


def is_lock(path: Path) -> bool:
    """Say whether a lock may be made there: there is nothing, or an empty file."""
    if not os.path.lexists(path):
        return True
    return not path.is_symlink() and path.is_file() and not path.stat().st_size


def _is_special(target: Path) -> bool:
    """Say whether a target is a pipe or a device; of a directory, raise IsADirectoryError."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(target))
    return target.exists() and not target.is_file()


def _create_beside(target: Path, private: bool) -> tuple[Path, IO[bytes]]:
    """Return a new temporary file, locked for as long as it is open."""
    while True:
        partial = _temporary_beside(target)
        file = open(partial, "xb", opener=_open_private if private else None)  # noqa: SIM115
        # Another process may have taken it for a stale one before it was locked.
        if fcntl is None or not _locked(file, wait=True) or os.fstat(file.fileno()).st_nlink:
            return partial, file
        file.close()


def _locked(file: IO[bytes], *, wait: bool) -> bool:
    """Lock a file until it is closed; say whether that was done."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another process holds it, or the file system has no locks
        return False
    return True


def _matching(directory: Path, pattern: re.Pattern[str]) -> list[Path]:
    """List the regular files of a directory whose names match."""
    with suppress(OSError), os.scandir(directory) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    return []


@contextmanager
def weights_by_umask(directory: Path) -> Iterator[None]:
    """Let the body write safetensors files into a directory.

    safetensors writes, since 0.8, a temporary file that its owner alone may read, and renames it.
    The files get the mode of any new file, and temporary ones of killed processes are removed.
    """
    before = _safetensors(directory)
    with _saving(directory):
        yield
    written = _safetensors(directory).items() - before.items()
    if not written:
        return
    # The mode of an ordinary file: os.umask() cannot be asked without changing it for all threads.
    remove_stale(directory / "mode")
    probe = _temporary_beside(directory / "mode")
    try:
        with probe.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for path, _ in written:
        with suppress(FileNotFoundError):
            path.chmod(mode)


@contextmanager
def _saving(directory: Path) -> Iterator[None]:
    """Hold a shared lock on a directory; if no other process does, remove stale files first."""
    if fcntl is None or directory.is_file():
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # others are at work, or the file system locks no directories
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in _matching(directory, _SAFETENSORS_TEMPORARY):
                if _begins_as_safetensors(path):
                    path.unlink()
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _begins_as_safetensors(path: Path) -> bool:
    """Say whether a file is empty or begins as safetensors do: a length and an object of JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return not start or (
        int.from_bytes(start[:8], "little") < _MOST_HEADER and start[8:] in (b"", b"{")
    )


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
