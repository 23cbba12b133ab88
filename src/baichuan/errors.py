"""The errors a user can cause; knows no model, no file format and no command line.

    BaichuanError               anything below; the command line prints it and exits 2
    ├── UsageError              an argument that cannot be: what was given, what is allowed
    │   └── ContextLengthError  more tokens than the model's context holds
    ├── CheckpointError         files that are missing, broken, unsafe, or of another model
    ├── TokenizerError          a vocabulary file that cannot serve
    ├── PromptError             messages that make no conversation
    ├── DataError               rows of a data set that are missing or not as they should be
    ├── TrainingError           training that cannot go on: a loss that is no number, a full disk
    ├── NumericalError          logits that are NaN or infinite: damaged weights, or an overflow
    ├── DownloadError           a model that is neither here nor to be had from the hub
    ├── QueueFullError          more requests at once than the engine was told to keep waiting
    └── StoppedError            a request to an engine that was closed

Each message is one sentence or two: what was given, what is allowed, what to do. It is written as
a template and its facts, `UsageError("bits is {bits}; allowed is 8, 4 or 3.", bits=bits)`, so that
the template can be found in the catalogue of the user's language.
"""

from __future__ import annotations

import os
import re

from baichuan.language import phrase, translate

#: Characters of a message, at most; and of one fact, tried in this order until the message fits.
_MOST = 500
_MOST_OF_A_FACT = (400, 200, 100, 50, 20)
#: What a terminal may take as a command, and what no encoding can write. Files and clients send it.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class BaichuanError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        template: the message in English, for `str.format`; looked up in the user's language.
        facts: what its `{names}` stand for; without any, braces mean themselves. They come from
            anyone's files and requests: long ones are cut in the middle, so that the message has
            at most 500 characters, and control characters are escaped.
    """

    def __init__(self, template: str, /, **facts: object) -> None:
        for most in _MOST_OF_A_FACT:
            shown = {name: _Fact(value, most) for name, value in facts.items()}
            sentence = translate(template, **shown)
            if len(sentence) <= _MOST:
                break
        # The finished sentence is the only argument kept: pickle and copy make the error from it.
        super().__init__(sentence)

    @classmethod
    def unreadable(cls, path: str | os.PathLike[str], error: OSError) -> BaichuanError:
        """Return the error for a file, or a directory, that the system refuses to read."""
        if isinstance(error, PermissionError):
            return cls(
                phrase(
                    "{path} cannot be read: permission denied. Ask its owner for `chmod a+r` on "
                    "the file and `chmod a+rx` on its directories, or run as a user who may read "
                    "it."
                ),
                path=path,
            )
        return cls(
            phrase("{path} cannot be read ({reason})."), path=path, reason=error.strerror or error
        )


class _Fact:
    """A value in a message, cut and escaped."""

    def __init__(self, value: object, most: int) -> None:
        self._value, self._most = value, most

    def __repr__(self) -> str:
        return self._shown(repr(self._value))

    def __format__(self, spec: str) -> str:
        return self._shown(format(self._value, spec))

    def _shown(self, text: str) -> str:
        if len(text) > self._most:
            half = self._most // 2
            text = f"{text[:half]}…{text[-half:]}"
        return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class UsageError(BaichuanError, ValueError):
    """An argument has a value that is not allowed."""


class ContextLengthError(UsageError):
    """A prompt, with the answer that is asked for, is longer than the model's context."""


class CheckpointError(BaichuanError, OSError):
    """A checkpoint is incomplete, damaged, unsafe, or belongs to another model."""


class TokenizerError(BaichuanError, ValueError):
    """A tokenizer file is missing or does not fit."""


class PromptError(BaichuanError, ValueError):
    """A list of messages does not form a conversation."""


class DataError(BaichuanError, ValueError):
    """A data set is incomplete, or a row of it is wrong."""


class TrainingError(BaichuanError, RuntimeError):
    """Training cannot go on; the last good checkpoint is as it was."""


class NumericalError(BaichuanError, ArithmeticError):
    """A network computed numbers that are not finite; no token can be chosen among them."""


class DownloadError(BaichuanError, OSError):
    """A model is not on this machine and could not be fetched."""


class QueueFullError(BaichuanError, RuntimeError):
    """As many requests wait for the engine as may; nothing is wrong with this one."""


class StoppedError(BaichuanError, RuntimeError):
    """The engine was closed, before the request came or before it was answered."""
