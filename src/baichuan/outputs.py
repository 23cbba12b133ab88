"""Files of results: checked before the work, written whole, and what goes wrong in a sentence."""

from __future__ import annotations

from pathlib import Path

from baichuan.errors import BaichuanError, UsageError
from baichuan.files import check_writable, write_at_one_stroke
from baichuan.language import phrase

_UNWRITABLE = phrase("{target} cannot be written ({reason}). Name another file, or free some room.")


def unwritable(
    target: Path, error: OSError, kind: type[BaichuanError] = UsageError
) -> BaichuanError:
    """Return the error for a file that the system refuses to write."""
    return kind(_UNWRITABLE, target=target, reason=error.strerror or error)


def require_writable(*targets: Path | None) -> None:
    """Check, before hours of work, that files can be written; None is passed over.

    Raises:
        UsageError: one of them cannot.
    """
    for target in filter(None, targets):
        try:
            check_writable(target)
        except OSError as error:
            raise unwritable(target, error) from error


def write_output(
    target: Path,
    content: bytes,
    kind: type[BaichuanError] = UsageError,
    *,
    private: bool = False,
) -> None:
    """Write a file whole or not at all.

    Args:
        target: file to write.
        content: all of it.
        kind: class of the error.
        private: let nobody but the owner read a new file.

    Raises:
        BaichuanError: `kind`: the file cannot be written; nothing is left.
    """
    try:
        write_at_one_stroke(target, content, private=private)
    except OSError as error:
        raise unwritable(target, error, kind) from error
