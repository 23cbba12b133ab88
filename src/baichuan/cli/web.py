"""`baichuan web`: the page in a browser, served from here."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Mapping
from typing import Any

from baichuan.errors import UsageError
from baichuan.language import translate


def run_web(
    model: str | None,
    server: str | None,
    host: str,
    port: int,
    browser: bool,
    where: Mapping[str, Any],
) -> None:
    """Serve the page until Ctrl+C.

    Args:
        model: the checkpoint, or None for the demo.
        server: address of an OpenAI-compatible server that answers instead, or None.
        host, port: where to listen.
        browser: whether to open one.
        where: further fields of `baichuan.web.options.Options`.

    Raises:
        UsageError: the extra `web` is not installed, or both a model and a server were given.
        BaichuanError: there is no such model.
    """
    if server is not None and (model is not None or where.get("adapter") is not None):
        raise UsageError("A model and --server were both given; leave one of them out.")
    try:
        from baichuan.web.app import run_page
        from baichuan.web.hosts import is_loopback
        from baichuan.web.options import Options
    except ModuleNotFoundError as error:
        raise UsageError(
            "The page needs {package}, which is not installed: pip install 'baichuan-lm[web]' "
            "(Python 3.11 or newer)",
            package=error.name,
        ) from error
    for name in (model, where.get("draft")):
        if name is not None:
            from baichuan.hub import local_directory

            local_directory(name)  # a wrong name is said here, and a download shown

    def ready(address: str) -> None:
        note = translate("The page is at {address} (Ctrl+C ends it)", address=address)
        print(note, file=sys.stderr, flush=True)
        if not is_loopback(host):
            warning = translate(
                "Whoever reaches {host} may use the model: the page asks for no password.",
                host=host,
            )
            print(warning, file=sys.stderr, flush=True)
        if browser:
            webbrowser.open(address)

    options = Options(model, server=server, **where)
    run_page(options, host, port, ready)
