"""One training at a time in an output directory, which is checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from baichuan.errors import BaichuanError, TrainingError, UsageError
from baichuan.language import translate

LOCK = ".lock"
#: Seconds: for so long, the data loaders of a training that was killed may keep its lock.
_PATIENCE = 10


@contextmanager
def alone(output: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make the output directory and keep other trainings out of it; the first process calls this.

    The system takes the lock from a process that ends, however it ends. Where the file system has
    no locks, that is said.

    Raises:
        UsageError: another training runs there, or the directory cannot be written to.
    """
    path, lock, new = output / LOCK, None, not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        lock = _locked(path, say)
    except OSError as error:
        raise UsageError(
            "{directory} cannot be written to ({reason}). Give another --output_dir.",
            directory=output,
            reason=error.strerror or error,
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps what is open
            path.unlink()
        if lock is not None:
            lock.release()
        if new:
            with suppress(OSError):  # something was written there
                output.rmdir()


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raise TrainingError where the disk of the output directory is full, or refuses a file."""
    try:
        yield
    except BaichuanError:
        raise
    except OSError as error:
        raise TrainingError(
            "{directory} cannot be written to ({reason}). Free some space there, and give the same "
            "command again.",
            directory=output,
            reason=error.strerror or error,
        ) from error


def _locked(path: Path, say: Callable[[str], None]) -> FileLock | None:
    """Return the lock, or None where there are none.

    Raises:
        UsageError: another process holds it.
    """
    lock = FileLock(path, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            "Another training is writing to {directory}; wait until it ends, or give another "
            "--output_dir.",
            directory=path.parent,
        ) from error
    except (OSError, NotImplementedError) as error:
        say(
            translate(
                "{directory} is on a file system without locks ({reason}): start no second "
                "training there before this one ends.",
                directory=path.parent,
                reason=error,
            )
        )
        return None
    return lock
