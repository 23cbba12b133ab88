"""Find what is wrong with one request before it can end others. Knows token ids and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from operator import index

import torch
from torch import Tensor

from baichuan.errors import UsageError


def check_prompt(prompt: Iterable[int], vocabulary: int) -> list[int]:
    """Return a copy of a prompt's token ids.

    Raises:
        UsageError: there are none, or they are no whole numbers from 0 to `vocabulary` - 1.
    """
    ids = _whole_numbers("prompt", prompt)
    if not ids:
        raise UsageError("The prompt has no tokens; give at least one.")
    _check_range("prompt", ids, vocabulary)
    return ids


def check_banned_ids(banned: Iterable[int], vocabulary: int) -> Tensor:
    """Return the ids of tokens that are never chosen as int64 [n].

    Raises:
        UsageError: they are no ids of the vocabulary, or all of them.
    """
    ids = _whole_numbers("banned_ids", banned)
    if ids:
        _check_range("banned_ids", ids, vocabulary)
    if len(set(ids)) == vocabulary:
        raise UsageError("banned_ids holds all {count} tokens; leave at least one.", count=len(ids))
    return torch.tensor(ids, dtype=torch.long)


def as_fault_of_request(error: BaseException) -> Exception:
    """Return the error with which a request ends whose own code raised.

    Raises:
        BaseException: the error itself, if it is none of a request: what is no `Exception` comes
            from a signal handler on the main thread (Ctrl+C), but from a callback on any other.
    """
    if isinstance(error, Exception):
        return error
    if threading.current_thread() is threading.main_thread():
        raise error
    fault = RuntimeError(f"a callback of the request raised {error!r}")
    fault.__cause__ = error
    return fault


def _whole_numbers(name: str, given: Iterable[int]) -> list[int]:
    try:
        return [index(token) for token in given]
    except TypeError as error:
        raise UsageError(
            "{name} holds what is no token id ({reason}); token ids are whole numbers.",
            name=name,
            reason=error,
        ) from error


def _check_range(name: str, ids: list[int], vocabulary: int) -> None:
    least, most = min(ids), max(ids)
    if least < 0 or most >= vocabulary:
        raise UsageError(
            "The token ids of {name} go from {least} to {most}; allowed are 0 to {last}. Is this "
            "another model's tokenizer?",
            name=name,
            least=least,
            most=most,
            last=vocabulary - 1,
        )
