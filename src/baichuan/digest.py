"""Content digests: what a result, a journal or a cached conversion was computed from.

A digest is the SHA-256 of the lines that `sha256sum` prints, so it depends on the names and the
content of files, and not on where they are or when they were written. Files are read in parallel:
a checkpoint of 26 GB takes 10 to 20 seconds, which is little beside loading it, so no digest is
cached by size or time of modification.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from baichuan.errors import CheckpointError

#: Weights: the first kind of which there are files is the one that is loaded.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
#: What else changes the outputs of a checkpoint or an adapter, whichever family's it is.
_BESIDE = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("*.model", "*.tiktoken", "tokenizer*", "vocab.*", "merges.txt", "chat_template*"),
    *("special_tokens_map.json", "added_tokens.json"),
)
_CHUNK = 1 << 20


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Return the digest of several files: of their names without directories, and their content.

    Args:
        paths: in an order that is part of the digest.

    Raises:
        OSError: a file cannot be read.
    """
    named = list(paths)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        sums = threads.map(file_digest, named)
        lines = [f"{digest}  {path.name}\n" for digest, path in zip(sums, named, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def checkpoint_digest(directory: str | os.PathLike[str]) -> str:
    """Return the digest of a checkpoint or an adapter: weights, configuration and tokenizer.

    Other files of the directory (results, logs, optimizer states) do not count.

    Raises:
        CheckpointError: a file cannot be read, or there are none of these.
    """
    path = Path(directory)
    kinds = (sorted(path.glob(pattern)) for pattern in _WEIGHTS)
    weights = next(filter(None, kinds), [])
    beside = {file for pattern in _BESIDE for file in path.glob(pattern)}
    files = [file for file in (*weights, *sorted(beside)) if file.is_file()]
    if not files:
        raise CheckpointError(
            "{directory} holds no checkpoint and no adapter: there are no weights and no "
            "config.json. Check the path.",
            directory=path,
        )
    try:
        return files_digest(files)
    except OSError as error:
        raise CheckpointError(
            "{path} cannot be read ({reason}).",
            path=error.filename or path,
            reason=error.strerror or error,
        ) from error
