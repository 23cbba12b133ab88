"""`baichuan serve`: what was typed becomes the server's options."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from baichuan.cli.options import (
    Adapter,
    Bits,
    Device,
    DraftModel,
    Dtype,
    HugePages,
    Model,
    Speculate,
    guess_options,
    load_options,
    takes_model,
)
from baichuan.errors import UsageError
from baichuan.language import translate
from baichuan.serve.interrupts import deferred_interrupts

_ENGINES = ("baichuan",)
_KEY_VARIABLE = "BAICHUAN_API_KEY"

HELP = translate(
    "Serve a model to many users at once, by OpenAI's API (docs/serving.md).\n\n"
    "Ctrl+C or SIGTERM ends it; answers under way are finished first."
)


@takes_model
def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help=translate("Address to listen on; 0.0.0.0 is every one."))
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help=translate("Port to listen on."), max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_KEY_VARIABLE,
            help=translate("Key that clients must send; may be given several times."),
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help=translate("The model's name for clients; may be given several times.")),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help=translate("Answers computed side by side."))
    ] = 32,
    max_queue: Annotated[
        int, typer.Option(min=0, help=translate("Requests that may wait; more are told to retry."))
    ] = 128,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=translate("Tokens that all caches may hold together; by default, what fits."),
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, help=translate("Seconds that an answer may take."))
    ] = 600,
    drain: Annotated[
        float,
        typer.Option(min=0, help=translate("Seconds for answers under way when told to end.")),
    ] = 30,
    max_body: Annotated[int, typer.Option(min=1, help=translate("Most bytes of a request."))] = 1
    << 20,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help=translate("Web page that may call (CORS); may be given several times.")),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help=translate(
                "Name by which clients call the server, beside localhost and its address; may be "
                "given several times."
            )
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help=translate("What computes the answers."))] = "baichuan",
    speculate: Speculate = None,
    draft: DraftModel = None,
    adapter: Adapter = None,
    bits: Bits = None,
    huge_pages: HugePages = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Run `baichuan serve`."""
    _check_engine(engine)
    if not api_key and _KEY_VARIABLE in os.environ:
        raise UsageError(
            "{name} is set but holds no key; give it one, or unset it to serve without a key.",
            name=_KEY_VARIABLE,
        )
    if math.isinf(drain):
        raise UsageError("--drain is {seconds}; allowed is a number of seconds.", seconds=drain)
    guesses = guess_options(speculate, draft)
    try:
        with deferred_interrupts():  # pydantic makes another error of it
            from baichuan.serve.app import ApiOptions
            from baichuan.serve.protocol import WorkerOptions
            from baichuan.serve.run import run_server
    except ModuleNotFoundError as error:
        raise UsageError(
            "baichuan serve needs {package}: pip install 'baichuan-lm[serve]'", package=error.name
        ) from error
    api = ApiOptions(
        names=tuple(served_model_name or [_name(model)]),
        api_keys=api_key or (),
        hosts=allow_host or (),
        origins=[origin.rstrip("/") for origin in allow_origin or ()],
        max_body=max_body,
        timeout=timeout,
    )
    where = load_options(adapter, bits, huge_pages, dtype, device)
    worker = WorkerOptions(model, where, max_batch, max_queue, cache_tokens, **guesses)
    run_server(worker, api, host, port, drain)


def _name(model: str | None) -> str:
    """Call a model as people do."""
    if model is not None and Path(model).expanduser().is_dir():
        return Path(model).expanduser().resolve().name
    return model or "baichuan-demo"


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
