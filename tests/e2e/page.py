"""The web page in a process of its own, as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager


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


def web(*options):
    return ["-m", "baichuan.cli.main", "web", "--no-browser", "--port", "0", *options]
