"""The directory in which a result grows, TARGET.partial: who may write there, and what is removed.

A journal in it tells it from a directory of someone else, in which nothing is touched. A lock
beside it keeps a second run out; it is removed last, so where it is still there and nobody holds
it, a run was killed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from baichuan.errors import BaichuanError, CheckpointError, UsageError
from baichuan.files import locked, may_write
from baichuan.json_files import read_object

JOURNAL, INDEX, SUMS = "journal.json", "model.safetensors.index.json", "SHA256SUMS"
#: Of a source's files, those that a result has as they are.
COPIED = (
    *("generation_config.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
#: What is ever written there: shards, what stands beside them, and temporary files (files.py).
_NAMES = "|".join(map(re.escape, (JOURNAL, INDEX, SUMS, "config.json", *COPIED)))
_OURS = re.compile(
    rf"(model-\d{{5,}}-of-\d{{5,}}\.safetensors|{_NAMES})(\.partial)?|\.tmp[0-9A-Za-z]{{6}}"
    r"|\.mode\.[0-9a-f]{8}"
)


def partial_of(target: Path) -> Path:
    """Return the directory in which a result grows."""
    return target.with_name(target.name + ".partial")


def check_target(target: Path) -> None:
    """Check, before any work, that a result can be written.

    What a run leaves that is killed when its result is whole is removed.

    Raises:
        UsageError: something is there, be it a dangling link, or the directory in which the result
            would grow belongs to someone else.
        CheckpointError: the directory above cannot be written to.
    """
    if os.path.lexists(target) and target.name:
        _remove_remains(target)
    _check_free(target)
    try:
        above = next(path for path in target.absolute().parents if path.exists())
    except OSError as error:  # a directory above may not be searched
        raise _not_made(target, error) from error
    if not above.is_dir():
        raise _not_made(target, f"{above} is no directory")
    if not may_write(above):
        raise _not_made(target, f"{above} cannot be written to")


def check_room(target: Path, needed: int) -> None:
    """Raise CheckpointError if a result of so many bytes does not fit on the disk."""
    partial = partial_of(target)
    held = (
        sum(file.lstat().st_size for file in partial.glob("*")) if os.path.lexists(partial) else 0
    )
    existing = next(p for p in partial.absolute().parents if p.exists())
    free = shutil.disk_usage(existing).free
    if free + held < needed * 1.02:
        raise CheckpointError(
            "{directory} has {free:.1f} GB free; the new checkpoint needs {needed:.1f} GB. "
            "Free some, or give a directory on another disk.",
            directory=existing,
            free=free / 1e9,
            needed=needed / 1e9,
        )


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Make the directory in which a result grows, with a journal, and keep other runs out of it.

    Raises:
        UsageError: another run is writing it; or as `check_target`.
        CheckpointError: the directory cannot be made.
    """
    partial = partial_of(target)
    with ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(_lock_of(target)))
            _check_free(target)  # another run may have ended just now
            partial.mkdir(exist_ok=True)
            (partial / JOURNAL).touch()
        except BaichuanError:
            raise
        except TimeoutError as error:
            raise UsageError(
                "Another run is writing {directory}; wait until it ends, or give another target.",
                directory=partial,
            ) from error
        except OSError as error:
            raise _not_made(target, error) from error
        yield partial


def clear(partial: Path, keep: Collection[str] = ()) -> None:
    """Remove what an earlier run left in the directory of a result, but for the journal."""
    for path in partial.iterdir():
        if path.name not in (JOURNAL, *keep):
            path.unlink()


def discard(partial: Path) -> None:
    """Remove the directory of a result; the journal, which tells that it is ours, goes last."""
    clear(partial)
    (partial / JOURNAL).unlink(missing_ok=True)
    partial.rmdir()


def sums_text(sums: Mapping[str, str]) -> str:
    """Return checksums by the names of files in the form that `sha256sum -c` reads."""
    return "".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items()))


def _remove_remains(target: Path) -> None:
    """Remove what a run leaves that is killed when its result is whole."""
    path, partial = _lock_of(target), partial_of(target)
    if not any(map(os.path.lexists, (path, partial, target / JOURNAL))):
        return
    with suppress(OSError), locked(path):  # also where another run holds it
        if _is_whole(target):
            (target / JOURNAL).unlink()
        if [entry.name for entry in partial.glob("*")] == [JOURNAL]:
            discard(partial)
        elif partial.is_dir():
            partial.rmdir()


def _is_whole(target: Path) -> bool:
    """Say whether a directory is a result that still has its journal."""
    if not (target / JOURNAL).is_file():
        return False
    try:
        sums = read_object(target / JOURNAL).get("sums")
        return isinstance(sums, dict) and (target / SUMS).read_text("utf-8") == sums_text(sums)
    except (OSError, ValueError):
        return False


def _check_free(target: Path) -> None:
    """Raise UsageError if something is there, or in the directory where the result would grow."""
    if os.path.lexists(target):
        raise UsageError(
            "{target} exists; give a name that is free, or remove it first.", target=target
        )
    partial = partial_of(target)
    if not os.path.lexists(partial):
        return
    stranger = "" if partial.is_symlink() or not partial.is_dir() else _stranger(target)
    if stranger is not None:
        raise UsageError(
            "{path} is not of an unfinished run of baichuan, which would write there. Move it "
            "away, or give another target.",
            path=partial / stranger,
        )


def _stranger(target: Path) -> str | None:
    """Return the name of a file that no run has written into the directory of its result."""
    with os.scandir(partial_of(target)) as entries:
        names = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    if names and not names.get(JOURNAL):
        return min(names)
    ours = (name for name, is_file in names.items() if is_file and _OURS.fullmatch(name))
    return min(names.keys() - {*ours, target.name}, default=None)


def _lock_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial.lock")


def _not_made(target: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        "{directory} cannot be made ({reason}). Give a target elsewhere.",
        directory=partial_of(target),
        reason=reason,
    )
