"""The errors a user can cause; knows no model, no file format and no command line.

    BaichuanError               anything below; the command line prints it and exits 2
    ├── UsageError              an argument that cannot be: what was given, what is allowed
    ├── CheckpointError         files that are missing, broken, unsafe, or of another model
    ├── TokenizerError          a vocabulary file that cannot serve
    ├── PromptError             messages that make no conversation
    └── DownloadError           a model that is neither here nor to be had from the hub

Each message is one sentence or two: what was given, what is allowed, what to do.
"""


class BaichuanError(Exception):
    """Base of all errors that a user can cause and mend."""


class UsageError(BaichuanError, ValueError):
    """An argument has a value that is not allowed."""


class CheckpointError(BaichuanError, OSError):
    """A checkpoint is incomplete, damaged, unsafe, or belongs to another model."""


class TokenizerError(BaichuanError, ValueError):
    """A tokenizer file is missing or does not fit."""


class PromptError(BaichuanError, ValueError):
    """A list of messages does not form a conversation."""


class DownloadError(BaichuanError, OSError):
    """A model is not on this machine and could not be fetched."""
