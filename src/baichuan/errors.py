"""The errors a user can cause; knows no model, no file format and no command line.

    BaichuanError               anything below; the command line prints it and exits 2
    ├── UsageError              an argument that cannot be: what was given, what is allowed
    │   └── ContextLengthError  more tokens than the model's context holds
    ├── CheckpointError         files that are missing, broken, unsafe, or of another model
    ├── TokenizerError          a vocabulary file that cannot serve
    ├── PromptError             messages that make no conversation
    ├── DataError               rows of a data set that are missing or not as they should be
    ├── TrainingError           training that cannot go on: a loss that is no number, a full disk
    ├── DownloadError           a model that is neither here nor to be had from the hub
    ├── QueueFullError          more requests at once than the engine was told to keep waiting
    └── StoppedError            a request to an engine that was closed

Each message is one sentence or two: what was given, what is allowed, what to do. It is written as
a template and its facts, `UsageError("bits is {bits}; allowed is 8, 4 or 3.", bits=bits)`, so that
the template can be found in the catalogue of the user's language.
"""

from __future__ import annotations

import os

from baichuan.language import phrase, translate


class BaichuanError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        template: the message in English, for `str.format`; looked up in the user's language.
        facts: what its `{names}` stand for; without any, braces mean themselves.
    """

    def __init__(self, template: str, /, **facts: object) -> None:
        # The finished sentence is the only argument kept: pickle and copy make the error from it.
        super().__init__(translate(template, **facts))

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


class DownloadError(BaichuanError, OSError):
    """A model is not on this machine and could not be fetched."""


class QueueFullError(BaichuanError, RuntimeError):
    """As many requests wait for the engine as may; nothing is wrong with this one."""


class StoppedError(BaichuanError, RuntimeError):
    """The engine was closed, before the request came or before it was answered."""
