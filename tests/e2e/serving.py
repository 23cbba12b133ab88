"""A server in a process of its own, as a user starts it."""

import os
import re
import resource
import subprocess
import sys
import threading
import time

import httpx


class Server:
    """`baichuan serve` with some options; a context manager.

    Attributes:
        url: where it listens.
        log: the lines of its standard error so far.
        http: a client for it.
    """

    def __init__(self, *options, port=0, descriptors=None):
        command = [sys.executable, "-m", "baichuan.cli.main", "serve", "--port", str(port)]
        # One thread computes: the suite runs in several processes.
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors is not None:  # the process inherits the limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, before[1]))
        try:
            self.process = subprocess.Popen(
                [*command, *options], stderr=subprocess.PIPE, text=True, env=env
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        self.log = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.wait_for_line(r"at (http://\S+)/v1")[1]
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def wait_for_line(self, pattern, start=0):
        for _ in range(1200):
            found = next(filter(None, (re.search(pattern, x) for x in self.log[start:])), None)
            if found:
                return found
            assert self._reader.is_alive(), "\n".join(self.log)
            time.sleep(0.05)
        raise AssertionError("\n".join(self.log))

    def wait_until_ready(self):
        for _ in range(1200):
            if self.http.get("/health").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError("\n".join(self.log))

    def metrics(self):
        """Give the figures of /metrics by name (those without labels)."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line[0] != "#" and "{" not in line)
        return {name: float(value) for name, value in pairs}

    def wait_until_idle(self):
        for _ in range(600):
            now = self.metrics()
            if now["baichuan_requests_running"] + now["baichuan_requests_queued"] == 0:
                return
            time.sleep(0.05)
        raise AssertionError(now)

    def end(self):
        """Ask it to end, as a service manager does; give its exit status."""
        self.process.terminate()
        status = self.process.wait(60)
        self._reader.join()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()
        self.end()
        self.process.stderr.close()
