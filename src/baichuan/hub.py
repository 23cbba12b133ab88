"""From a name to a directory on this machine; knows the hub's layout, not what is in the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from baichuan.errors import CheckpointError, DownloadError

#: Everything a model needs; no Python file is ever fetched.
_WANTED = ("*.json", "*.model", "*.safetensors", "pytorch_model*.bin")
_TOKENIZER_ONLY = ("*.json", "*.model")


def local_directory(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    subfolder: str = "",
    weights: bool = True,
    **_: Any,
) -> Path:
    """Give the directory of a model, fetching it from the hub where it is not a path.

    Downloads show progress, resume after an interruption, and obey `HF_HUB_OFFLINE`; the arguments
    are those of transformers' `from_pretrained`, of which others are ignored.

    Raises:
        CheckpointError: a path that is no directory.
        DownloadError: not on this machine and not to be had from the hub.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path / subfolder
    name = os.fspath(name_or_path)
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the directory that holds the checkpoint.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{name} is neither a directory on this machine nor a hub name like "
            "'baichuan-inc/Baichuan-13B-Chat'. Check the spelling."
        )
    try:
        return (
            Path(
                snapshot_download(
                    name,
                    revision=revision,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    token=token,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    allow_patterns=list(_WANTED if weights else _TOKENIZER_ONLY),
                )
            )
            / subfolder
        )
    except GatedRepoError as error:
        raise DownloadError(
            f"The model {name!r} asks for its licence to be accepted on its hub page first."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise DownloadError(
            f"The hub has no model {name!r}{f' at revision {revision!r}' if revision else ''}, "
            "or it is private: check the spelling, or log in with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise DownloadError(
            f"The model {name!r} is not on this machine and the hub cannot be reached (no network, "
            "or HF_HUB_OFFLINE is set). Connect, or give the directory of a downloaded checkpoint."
        ) from error
