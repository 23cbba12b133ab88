"""From options to a server that runs until it is told to end. Knows uvicorn and sockets."""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
from dataclasses import replace

import uvicorn
from starlette.types import ASGIApp

from baichuan.errors import BaichuanError, UsageError
from baichuan.language import translate
from baichuan.serve.app import ApiOptions, make_app
from baichuan.serve.connections import HttpConnection, backlog, limited
from baichuan.serve.logs import set_up_logs
from baichuan.serve.protocol import WorkerOptions
from baichuan.serve.supervisor import ModelProcess

_log = logging.getLogger(__name__)


def run_server(worker: WorkerOptions, api: ApiOptions, host: str, port: int, drain: float) -> None:
    """Serve until SIGINT or SIGTERM; answers under way may then take `drain` seconds more.

    Raises:
        UsageError: the address cannot be had.
        BaichuanError: the model cannot be loaded.
    """
    set_up_logs()
    listening = listen(host, port)
    reasons: list[str] = []

    def give_up(reason: str) -> None:
        reasons.append(reason)
        server.should_exit = True

    process = ModelProcess(worker, give_up)
    # Whoever knows the address may call by it.
    hosts = [*api.hosts, host, listening.getsockname()[0]]
    app = make_app(process, replace(api, hosts=hosts))
    server = _Server(http_config(app, drain, limited()), process)
    _log.info("%s at http://%s:%d/v1", api.names[0], *listening.getsockname()[:2])
    if not (api.api_keys or _is_loopback(host)):
        _log.warning(
            translate("Whoever reaches {host} may use the model: there is no --api-key.", host=host)
        )
    try:
        server.run(sockets=[listening])
    finally:
        process.kill()  # at a second Ctrl+C, uvicorn does not wait for the app's own end
    if reasons:
        raise BaichuanError("The model cannot be served: {reason}", reason=reasons[0])


class _Server(uvicorn.Server):
    """uvicorn's server, which starts and ends the model process with itself.

    Not by ASGI's lifespan: at a second Ctrl+C uvicorn abandons that, which is then logged as a
    failure of the app.
    """

    def __init__(self, config: uvicorn.Config, process: ModelProcess) -> None:
        super().__init__(config)
        self._model = process

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load the model."""
        self._model.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end, then the model process."""
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._model.close()


def http_config(app: ASGIApp, drain: float, http: type[HttpConnection]) -> uvicorn.Config:
    """Return how HTTP is spoken: by one parser, whatever else is installed."""
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # the guard writes it
        server_header=False,
        backlog=backlog(),
        timeout_graceful_shutdown=math.ceil(drain),
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise `UsageError` if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            "The server cannot listen on {host}:{port} ({reason}); choose another --host or "
            "--port.",
            host=host,
            port=port,
            reason=error.strerror if isinstance(error, OSError) else error,
        ) from error
    # asyncio sets TCP_NODELAY only where the protocol is named, which create_server leaves out.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listening.detach())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
