"""From a name to a directory on this machine; knows the hub's layout, not what is in the files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of its httpx
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from baichuan.errors import CheckpointError, DataError, DownloadError

#: Where on the hub to look: arguments here, in `baichuan.load` and in `from_pretrained`.
HUB_ARGUMENTS = (
    "revision",
    "token",
    "cache_dir",
    "force_download",
    "local_files_only",
    "subfolder",
)
#: The small model that travels with the package, and its name; a directory is `./demo`.
DEMO = Path(__file__).with_name("demo")
DEMO_NAME = "demo"
#: Everything a model needs; no Python file is ever fetched.
_WANTED = ("*.json", "*.model", "model*.safetensors")
#: Fetched only where the repository has no safetensors.
_PICKLES = "pytorch_model*.bin"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_ADAPTER_PICKLE = "adapter_model.bin"
#: What data sets are read from; no script that would have to be run.
_ROWS = ["*.csv", "*.zip", "*.tar", "*.tar.gz", "*.tgz"]
#: Fetched only where the repository has none of these.
_PARQUET = ["*.parquet"]


def local_directory(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Path:
    """Return the directory of a model, fetching it from the hub where it is not a path.

    `demo` is the demo model. Downloads show progress, resume after an interruption, and obey
    `HF_HUB_OFFLINE`; where a repository holds the weights as safetensors and as pickles, the
    pickles are not fetched. The arguments are those of transformers' `from_pretrained`.

    Raises:
        CheckpointError: a path that is no directory, or an adapter without its model.
        DownloadError: not on this machine and not to be had from the hub.
    """
    name = os.fspath(name_or_path)
    path, mode = _path_and_mode(name)
    if name == DEMO_NAME:
        return DEMO
    check_permission(path)
    if name and stat.S_ISDIR(mode):
        return _checked(path / subfolder)
    if path.suffix == ".gguf" and stat.S_ISREG(mode):
        raise CheckpointError(
            "{path} is a GGUF file. Make a checkpoint of it once, `baichuan convert {path} "
            "DIRECTORY --bits 4`, and give the directory.",
            path=path,
        )
    if stat.S_ISREG(mode):
        raise CheckpointError(
            "{path} is a file; give the directory that holds the checkpoint.", path=path
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            "{name!r} is neither a directory on this machine nor a hub name like "
            "'baichuan-inc/Baichuan-13B-Chat'. Check the spelling.",
            name=name,
        )

    where = {
        "revision": revision,
        "cache_dir": None if cache_dir is None else Path(cache_dir),
        "token": token,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    try:
        directory = _fetched(name, _WANTED, subfolder, where)
        if not any(directory.glob("model*.safetensors")):
            directory = _fetched(name, (_PICKLES,), subfolder, where)
    except (OSError, HTTPError, HFValidationError) as error:
        raise _explained(name, revision, error) from error
    return _checked(directory)


def adapter_directory(name_or_path: str | os.PathLike[str], **hub: Any) -> Path:
    """Return the directory of an adapter, fetching it from the hub where it is not a path.

    Args:
        name_or_path: a directory, or a hub name.
        hub: of `local_directory`.

    Raises:
        DownloadError: not on this machine and not to be had from the hub.
    """
    name, subfolder = os.fspath(name_or_path), str(hub.pop("subfolder", ""))
    path, mode = _path_and_mode(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or mode:
        return path / subfolder
    try:
        directory = _fetched(name, _ADAPTER, subfolder, hub)
        if not any(directory.glob("adapter_model.safetensors")):
            directory = _fetched(name, (_ADAPTER_PICKLE,), subfolder, hub)
    except (OSError, HTTPError, HFValidationError) as error:
        raise _explained(name, hub.get("revision"), error) from error
    return directory


def _fetched(name: str, patterns: Iterable[str], subfolder: str, where: Mapping[str, Any]) -> Path:
    prefix = f"{subfolder}/" if subfolder else ""
    root = snapshot_download(
        name, allow_patterns=[prefix + pattern for pattern in patterns], **where
    )
    return Path(root) / subfolder


def _path_and_mode(name: str) -> tuple[Path, int]:
    """Return a name as a path, with its mode; 0 if there is none, or no system takes the name."""
    path = Path(name)
    try:
        path = path.expanduser()
        return path, path.stat().st_mode
    except (OSError, ValueError, RuntimeError):  # RuntimeError: `~` of a user whom there is not
        return path, 0


def is_model_name(name: str) -> bool:
    """Say whether a text may name a model: it is one there is, a path, or looks like a hub name."""
    is_hub_name = name.count("/") == 1 and not re.search(r"\s", name)
    return (
        name == DEMO_NAME
        or is_hub_name
        or bool(re.match(r"[./~]", name))
        or bool(_path_and_mode(name)[1])
    )


def _checked(directory: Path) -> Path:
    """Refuse a directory that holds an adapter, alone or beside a model."""
    if not (directory / "adapter_config.json").is_file():
        return directory
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            "{path} is a LoRA adapter, not a whole model. Give it with --adapter {path} (in Python "
            "adapter={path!r}); the model it was trained on is then found by itself.",
            path=str(directory),
        )
    if any(directory.glob("adapter_model*")):  # transformers would attach it without a word
        raise CheckpointError(
            "{path} holds a model and a LoRA adapter (adapter_config.json). Move the adapter to a "
            "directory of its own and give it with --adapter, or delete it.",
            path=str(directory),
        )
    return directory


def check_permission(path: Path) -> None:
    """Raise CheckpointError for a directory in which this user may not look anything up."""
    try:
        (path / os.pardir).stat()
    except PermissionError as error:
        raise CheckpointError.unreadable(path, error) from error
    except (OSError, ValueError):  # there is none of this name
        return


def data_directory(name: str) -> Path:
    """Give the directory of a data set of the hub, fetching its archives and CSV files.

    Where it has none of these, its Parquet files are fetched.

    Raises:
        DataError: this cannot be a name on the hub.
        DownloadError: not on this machine and not to be had from the hub.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(
            "{name!r} is no folder and no file on this machine, nor a data set's name on the hub "
            "like 'ceval/ceval-exam'. Check the spelling.",
            name=name,
        )
    try:
        directory = Path(snapshot_download(name, repo_type="dataset", allow_patterns=_ROWS))
        if not any(path for pattern in _ROWS for path in directory.rglob(pattern)):
            directory = Path(snapshot_download(name, repo_type="dataset", allow_patterns=_PARQUET))
        return directory
    except (OSError, HTTPError, HFValidationError) as error:
        raise DownloadError(
            "The data set {name!r} could not be fetched from the hub ({why}). Give a folder or an "
            "archive of it with --data.",
            name=name,
            why=(str(error) or type(error).__name__).splitlines()[0],
        ) from error


def _explained(name: str, revision: str | None, error: Exception) -> DownloadError:
    """Say why a model could not be fetched, and what to do."""
    model = f"{name}@{revision}" if revision else name
    if isinstance(error, GatedRepoError):
        return DownloadError(
            "The model {model!r} asks for its licence to be accepted on its hub page first.",
            model=model,
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        return DownloadError(
            "The hub has no model {model!r}, or it is private, and there is no directory of this "
            "name: check the spelling, or log in with `hf auth login`.",
            model=model,
        )
    offline = (LocalEntryNotFoundError, OfflineModeIsEnabled)
    if isinstance(error, offline) or not isinstance(error, (OSError, HfHubHTTPError)):
        return DownloadError(
            "The model {model!r} is not on this machine, or only in part, and the hub cannot be "
            "reached (no network, or HF_HUB_OFFLINE is set). Connect, or give the directory of a "
            "downloaded checkpoint.",
            model=model,
        )
    return DownloadError(
        "The model {model!r} could not be fetched: {why}. What is here already will be kept.",
        model=model,
        why=(str(error) or type(error).__name__).splitlines()[0],
    )
