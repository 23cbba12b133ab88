"""Servers under measurement, each on a free port: `baichuan serve` and llama.cpp's server."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

_SECONDS_TO_START = 120.0
_LAST_WORDS = 3000


class Server:
    """A server process that is ready; a context manager, so that none is left behind.

    Attributes:
        port: on 127.0.0.1.
        pid: of the process that was started.
        log: the file that its output goes to.
    """

    def __init__(self, command: list[object], port: int, threads: int) -> None:
        """Start it and wait until /health says yes.

        Raises:
            SystemExit: it ended, or took too long.
        """
        self.port = port
        self.log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115  (closed at the end)
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.pid = self._process.pid
        deadline = time.monotonic() + _SECONDS_TO_START
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = Path(self.log.name).read_text("utf-8", "replace")
                self.close()
                sys.exit(f"{command[0]} did not start:\n{words[-_LAST_WORDS:]}")
            time.sleep(0.05)

    @classmethod
    def baichuan(cls, model: Path | None, threads: int, *options: object) -> Server:
        """Start ours."""
        port = _free_port()
        command = [sys.executable, "-m", "baichuan.cli.main", "serve"]
        model_of = [] if model is None else [model]
        return cls([*command, *model_of, "--port", port, *options], port, threads)

    @classmethod
    def llama(cls, program: Path, model: Path, threads: int, *options: object) -> Server:
        """Start llama.cpp's."""
        port = _free_port()
        command = [program, "-m", model, "--port", port, "-t", threads, "-tb", threads]
        return cls([*command, *options], port, threads)

    def get(self, path: str) -> tuple[int, str]:
        """Give status and body of a path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def figures(self) -> dict[str, float]:
        """Give what /metrics of ours says, by name."""
        lines = self.get("/metrics")[1].splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def close(self) -> None:
        """End it and wait for that."""
        self._process.terminate()
        try:
            self._process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _is_healthy(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
