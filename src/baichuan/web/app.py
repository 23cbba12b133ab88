"""The page as a web application: who may reach it, what a browser may do with it, how it starts.

Knows Streamlit as a server; what is drawn is page.py's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import App
from streamlit.web.server.server_util import get_display_address, get_url

from baichuan.errors import UsageError
from baichuan.web.hosts import LOOPBACK_NAMES, KnownHosts, allowed_hosts
from baichuan.web.options import Options
from baichuan.web.session import BROWSER_COOKIE, stop_all

# As the command line does, for `streamlit run`: the engine's threads must not wait in loops
# for each other while Streamlit's want to draw. Read when torch loads its OpenMP, which is later.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

#: The script that Streamlit runs.
PAGE = Path(__file__).with_name("page.py")

#: Streamlit's settings; .streamlit/config.toml of the repository says the same for `streamlit run`.
SETTINGS = {
    "server.address": "127.0.0.1",
    "server.allowedHosts": list(LOOPBACK_NAMES),
    "browser.gatherUsageStats": False,
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "logger.hideWelcomeMessage": True,
    "logger.level": "error",
    "server.fileWatcherType": "none",
    # With torch in memory a collection after each drawing would stop the engine for 0.2 s.
    "runner.postScriptGC": False,
    "server.maxUploadSize": 20,
    # Of both, so that the page is as light or dark as the system, or as its menu is told.
    "theme.light.primaryColor": "#2f6fde",
    "theme.dark.primaryColor": "#5b93f5",
}

#: Nothing but the page's own files is fetched, whatever a message says. Streamlit's own scripts
#: and styles are partly inline, and its charts compile what they are given.
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Else a browser looks up the hosts of links that nobody has clicked.
    "X-DNS-Prefetch-Control": "off",
}
#: Ports that are tried.
_PORTS = 100
_YEAR = 365 * 24 * 3600


class Headers:
    """Middleware: puts `_HEADERS` on every answer, and a cookie on the page's to know it again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = BROWSER_COOKIE in HTTPConnection(scope).cookies

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if not known and headers.get("content-type", "").startswith("text/html"):
                    headers.append("Set-Cookie", _new_cookie(secure=scope["scheme"] == "https"))
            await send(message)

        await self._app(scope, receive, send_more)


def _new_cookie(secure: bool) -> str:
    cookie = SimpleCookie({BROWSER_COOKIE: secrets.token_hex(16)})
    morsel = cookie[BROWSER_COOKIE]
    morsel.update({"path": "/", "max-age": str(_YEAR), "samesite": "Lax"})
    morsel["httponly"], morsel["secure"] = True, secure
    return morsel.OutputString()


@asynccontextmanager
async def _lifespan(_: App) -> AsyncIterator[None]:
    yield
    stop_all()


#: What `streamlit.App` is given besides the page.
PARTS: dict[str, Any] = {
    "middleware": [Middleware(Headers), Middleware(KnownHosts)],
    "lifespan": _lifespan,
}


def run_page(options: Options, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until the process is told to stop.

    Args:
        options: which model answers.
        host: address to listen at.
        port: where; if it is taken, the next free one.
        ready: called with the page's address when a browser may come.

    Raises:
        UsageError: no port is free there.
    """

    @asynccontextmanager
    async def announced(app: App) -> AsyncIterator[None]:
        # The socket listens already; connections wait until this is through.
        address = get_url(get_display_address(host))
        asyncio.get_running_loop().call_soon(ready, address)
        async with _lifespan(app):
            yield

    port = free_port(host, port)
    # As `streamlit run page.py -- ...` would have it; the page reads them.
    sys.argv = [str(PAGE), *options.arguments()]
    app = App(PAGE, **{**PARTS, "lifespan": announced})
    here = {
        "server.address": host,
        "server.port": port,
        "server.allowedHosts": allowed_hosts(host),
    }
    app.run(config={**SETTINGS, **here})


def free_port(host: str, port: int) -> int:
    """Return the first free port from `port` on; 0 lets the system choose.

    Streamlit looks for another by itself only where no port was given.

    Raises:
        UsageError: a hundred ports are taken, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + _PORTS, 65536)) if port else [0]:
        with socket.socket(family) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                attempt.bind((host, candidate))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise UsageError(
                    "The page cannot listen at {host}, port {port} ({reason}).",
                    host=host,
                    port=candidate,
                    reason=error.strerror,
                ) from error
        return candidate
    raise UsageError("Port {port} and those after it are taken; give another --port.", port=port)
