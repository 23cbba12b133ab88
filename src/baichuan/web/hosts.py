"""Which names and origins a browser may reach the page by.

Any page on the web can have its own name resolve to 127.0.0.1 (DNS rebinding), or open a WebSocket
to a loopback address; the browser then says where it came from, in Host and Origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import streamlit as st
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from baichuan.language import translate

#: Names of this machine that no name server is asked for.
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::\d{1,5})?", re.IGNORECASE)


def is_loopback(address: str | None) -> bool:
    """Return whether only this machine can reach an address; None is every address."""
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return address == "localhost"


def allowed_hosts(address: str | None) -> list[str]:
    """Return the names that requests to a page at an address may have; none means any.

    On a network the page cannot know its names; there, each browser sees its own conversations,
    by a cookie that a browser sends to one name only.
    """
    if address is None or not is_loopback(address):
        return []
    return list(dict.fromkeys((*LOOPBACK_NAMES, address)))


class KnownHosts:
    """Middleware: answer 403 to requests of another Host, and to WebSockets of another Origin.

    Streamlit checks Host by `server.allowedHosts` for WebSockets alone, and takes any page of
    localhost, whatever its port, for its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        answer: ASGIApp = self._app
        if scope["type"] in ("http", "websocket"):
            headers = HTTPConnection(scope).headers
            hosts = st.get_option("server.allowedHosts") or allowed_hosts(
                st.get_option("server.address")
            )
            if not _names(headers.getlist("host"), hosts):
                refusal = translate(
                    "This Host is not served here; served are: {hosts} (server.allowedHosts).",
                    hosts=", ".join(hosts),
                )
                answer = PlainTextResponse(refusal, 403)
            if scope["type"] == "websocket" and (answer is not self._app or _foreign(headers)):
                answer = WebSocketClose(1008)  # before it is accepted: 403
        await answer(scope, receive, send)


def _names(given: Sequence[str], allowed: Sequence[str]) -> bool:
    """Return whether the Host headers of a request are one, with an allowed name."""
    if not allowed:
        return True
    found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    if found is None:
        return False
    name = (found[1] or found[2]).lower().rstrip(".")
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
        for pattern in map(str.lower, allowed)
    )


def _foreign(headers: Headers) -> bool:
    """Return whether a WebSocket was opened by a page of another address.

    Programs that are no browsers send no Origin. Who lists other origins, or turns the check off,
    leaves it to Streamlit.
    """
    origins = headers.getlist("origin")
    if st.get_option("server.corsAllowedOrigins") or not st.get_option("server.enableCORS"):
        return False
    return any(urlsplit(origin).netloc != headers.get("host") for origin in origins)
