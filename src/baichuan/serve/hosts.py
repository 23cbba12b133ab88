"""By which names a request may call the server, and which web pages may send one.

A page of a stranger can have its own name resolved to this machine (DNS rebinding). To the browser
the server is then a part of that page's site; only the Host header tells. Knows `faults.py`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers

from baichuan.errors import UsageError
from baichuan.serve.faults import ApiError

_AUTHORITY = re.compile(
    r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s\[\]:/@?#%\\]+?)\.?)(?::(?P<port>[0-9]{0,5}))?"
)
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>.+)")
_PORTS = {"http": 80, "https": 443}

_Host = str | ipaddress.IPv4Address | ipaddress.IPv6Address


class AllowedHosts:
    """The names and addresses that a Host header may hold, with any port.

    `localhost` and loopback addresses always are: no stranger can have them.

    Args:
        hosts: names and addresses; `0.0.0.0` or `::` allows every address (a rebound page calls by
            name), `*` everything.

    Raises:
        UsageError: something else, such as a URL, which no Host header could match.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._allowed: set[_Host] = {"localhost", *map(_option, hosts)}
        self._every_address = any(
            not isinstance(host, str) and host.is_unspecified for host in self._allowed
        )

    def check(self, headers: Headers, origins: Sequence[str]) -> None:
        """Raise `ApiError` for a request that calls a wrong name, or of a page that may not call.

        Programs that are no browsers may leave out Origin, and HTTP/1.0 both.

        Args:
            headers: of the request.
            origins: those that may call; `*` for all. The server's own pages always may.
        """
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._has(host):
            sentence = UsageError(
                "The Host header is {host!r}, which is not allowed (DNS rebinding); if the name is "
                "this server's, start it with --allow-host NAME.",
                host=host,
            )
            raise ApiError("host", str(sentence))
        if origin is None or origin in origins or "*" in origins or _same(origin, host or ""):
            return
        sentence = UsageError(
            "Web pages of {origin!r} may not call this server; to let them, start it with "
            "--allow-origin ORIGIN.",
            origin=origin,
        )
        raise ApiError("origin", str(sentence))

    def _has(self, given: str) -> bool:
        if "*" in self._allowed:
            return True
        host, _ = _split(given)
        if host is None or isinstance(host, str):
            return host in self._allowed
        return self._every_address or host.is_loopback or host in self._allowed


def _option(given: str) -> _Host:
    """Return a host that the user allows."""
    try:
        return _address(given.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        host, port = _split(given.encode("idna").decode())  # as browsers send it
    except UnicodeError:
        host = None
    if host is None or port is not None:
        raise UsageError(
            "--allow-host is {given!r}; allowed is a name or an address without scheme and port, "
            "such as api.example.com, or * for every name.",
            given=given,
        )
    return host


def _split(authority: str) -> tuple[_Host | None, int | None]:
    """Return host and port; None for no host, and for no port."""
    found = _AUTHORITY.fullmatch(authority.lower())
    if found is None:
        return None, None
    port = int(found["port"]) if found["port"] else None
    try:
        return _address(found["address"] or found["name"]), port
    except ValueError:
        return found["name"], port


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _same(origin: str, host: str) -> bool:
    """Say whether a page is the server's own; a proxy may have taken off TLS."""
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None:
        return False
    usual = _PORTS[found["scheme"]]
    (page, page_port), (server, server_port) = _split(found["authority"]), _split(host)
    return page is not None and (page, page_port or usual) == (server, server_port or usual)
