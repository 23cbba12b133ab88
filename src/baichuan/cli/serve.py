"""`baichuan serve`: what was typed becomes the server's options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baichuan.errors import UsageError

_ENGINES = ("baichuan",)


def run_serve(
    model: str | None,
    *,
    engine: str,
    names: Sequence[str],
    host: str,
    port: int,
    drain: float,
    max_batch: int,
    max_queue: int,
    cache_tokens: int | None,
    limits: dict[str, Any],
    where: dict[str, Any],
) -> None:
    """Serve a model until told to end.

    Args:
        model: the checkpoint, or None for the demo.
        engine: which engine answers.
        names: the model's names for clients; by default what the checkpoint is called.
        host, port: where to listen.
        drain: seconds that answers under way may take when the server is told to end.
        max_batch, max_queue: requests that run side by side, and that wait.
        cache_tokens: positions of all caches together; None: by the free memory.
        limits: further fields of `ApiOptions`.
        where: further arguments of `baichuan.load`.

    Raises:
        BaichuanError: an option that cannot be, or a model that cannot be loaded.
    """
    _check_engine(engine)
    try:
        from baichuan.serve.app import ApiOptions
        from baichuan.serve.protocol import WorkerOptions
        from baichuan.serve.run import run_server
    except ModuleNotFoundError as error:
        raise UsageError(
            "baichuan serve needs {package}: pip install 'baichuan-lm[serve]'", package=error.name
        ) from error
    if model is not None and Path(model).expanduser().is_dir():
        default = Path(model).expanduser().resolve().name
    else:
        default = model or "baichuan-demo"
    api = ApiOptions(names=tuple(names) or (default,), **limits)
    worker = WorkerOptions(model, where, max_batch, max_queue, cache_tokens)
    run_server(worker, api, host, port, drain)


def _check_engine(engine: str) -> None:
    if engine == "vllm":
        raise UsageError(
            "The engine vllm is not there yet; use {names}, which is the default.",
            names=", ".join(_ENGINES),
        )
    if engine not in _ENGINES:
        raise UsageError(
            "engine is {given!r}; allowed is {names}.", given=engine, names=", ".join(_ENGINES)
        )
