"""The web page in a process of its own, as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit


@contextmanager
def served(command, home, announced=r"(http://\S+)"):
    """Start a server and give its address once it says so; its last words must be no error."""
    environment = {**os.environ, "XDG_DATA_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("BAICHUAN_LANG", None)  # the browser's language is what counts here
    lines = []
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=home,
    ) as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout))
        try:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(announced, line):
                    break
            else:
                raise AssertionError("".join(lines))
            reader.start()
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
            if reader.ident:
                reader.join()
    assert "Traceback" not in "".join(lines), "".join(lines)


def handshake(address, host, origin):
    """Ask for the page's WebSocket as a browser does; give the status of the answer."""
    server = urlsplit(address)
    connection = HTTPConnection(server.hostname, server.port, timeout=60)
    headers = {
        "Host": host,
        "Origin": origin,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    connection.request("GET", "/_stcore/stream", headers=headers)
    with closing(connection):
        return connection.getresponse().status


def foreigners_are_refused(address):
    """Check a page at a loopback address, over the wire."""
    port = urlsplit(address).port
    assert handshake(address, f"localhost:{port}", f"http://localhost:{port}") == 101
    for host, origin in (
        (f"evil.example:{port}", f"http://evil.example:{port}"),
        (f"localhost:{port}", "http://evil.example"),
        (f"127.0.0.1:{port}", "http://localhost:3000"),
    ):
        assert handshake(address, host, origin) == 403


def web(*options):
    return ["-m", "baichuan.cli.main", "web", "--no-browser", "--port", "0", *options]
