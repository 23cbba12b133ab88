"""Run doors of the package in processes that are killed, or fail, at one of their file operations.

`Faults` keeps one process that has imported everything, with faults.c preloaded; it forks for each
run, so that a run costs what the door itself costs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

#: In place of an errno: kill the process.
KILL = 0


class Ended(NamedTuple):
    """How a run ended: its exit code (-9: killed), what it printed, its operations so far."""

    code: int
    said: str
    operations: int


class Faults:
    """Runs doors one after the other."""

    def __init__(self, library: Path, log: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, door: str, directory: Path, at: int = 0, fault: int = KILL) -> Ended:
        """Run Python source with `directory` as working directory; a fault happens below it.

        Args:
            door: source; `command(...)` runs one of ours.
            directory: to watch.
            at: number of the operation, from 1; 0 for an undisturbed run.
            fault: `KILL`, or the errno with which the operation fails.
        """
        job = {"door": door, "directory": str(directory), "at": at, "fault": fault}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        said = self._log.read_text("utf-8", "replace")
        if code < 0:
            return Ended(code, said, at)
        said, _, operations = said.rpartition("\n")
        return Ended(code, said, int(operations))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _serve(log: str) -> None:
    import ctypes

    import gguf  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import torch

    from baichuan.checkpoint import rewrite

    torch.set_num_threads(1)
    rewrite._SHARD_BYTES = 40_000  # a tiny network then has several
    library = ctypes.CDLL(None)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line), log, library)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(job: dict[str, Any], log: str, library: Any) -> None:
    """Run a door in this process, and end it."""
    from safetensors import SafetensorError

    from baichuan.errors import BaichuanError

    signal.alarm(120)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.chdir(job["directory"])
    library.faults_arm(job["directory"].encode(), job["at"], job["fault"])
    code: Any = 0
    try:
        exec(job["door"], {"command": _command})
    except SystemExit as ended:
        code = ended.code or 0
    except (BaichuanError, OSError, SafetensorError) as error:  # of a function
        print(error)
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 70
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    seen = library.faults_seen()
    library.faults_arm(b"", 0, 0)
    os.write(2, f"\n{seen}".encode())
    os._exit(code)


def _command(*arguments: str) -> None:
    """Run `baichuan ...`."""
    from baichuan.cli.main import main

    sys.argv = ["baichuan", *arguments]
    try:
        main()
    except Exception:
        traceback.print_exc()
        raise SystemExit(70) from None


if __name__ == "__main__":
    _serve(sys.argv[1])
