"""The comparison's side of a worker: starts it in its virtual environment, asks, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_HOME = Path(__file__).parent
_LAST_WORDS = 2000


class Worker:
    """A running worker; a context manager, so that none is left behind.

    Attributes:
        name: of the engine, for messages.
        facts: what it says of itself.
    """

    def __init__(self, name: str, python: Path, threads: int, *settings: object) -> None:
        """Start `workers/NAME_worker.py` and wait until it has loaded its model.

        Args:
            name: baichuan, llama or openvino.
            python: interpreter of the engine's virtual environment.
            threads: that it may use.
            settings: its other arguments.

        Raises:
            SystemExit: it ended instead.
        """
        self.name = name
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        script = str(_HOME / f"{name}_worker.py")
        command = [str(python), script, "--threads", str(threads), *map(str, settings)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=_environment(name, threads),
            text=True,
        )
        self._answer()
        self.facts = self.ask("info")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have something done and give the answer.

        Raises:
            SystemExit: the worker ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def seconds(self, do: str, **arguments: Any) -> float:
        """Have something timed."""
        return float(self.ask(do, **arguments)["seconds"])

    @property
    def major_faults(self) -> int:
        """Pages that the worker has had to wait for the disk for, so far (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text("ascii").rpartition(")")[2]
        return int(fields.split()[9])

    def close(self) -> None:
        """End the worker and wait until its memory is free."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _fail(self) -> None:
        code = self._process.wait()
        sys.exit(f"The {self.name} worker ended with {code}:\n{_last(self._words)}")


def first_token_seconds(name: str, python: Path, model: Path, threads: int, prompt: int) -> float:
    """Time `workers/first_token_NAME.py` from its start to its first token.

    Args:
        name: baichuan or llama.
        python: interpreter of the engine's virtual environment.
        model: file or directory; read once before, so that it lies in the page cache.
        threads: that it may use.
        prompt: tokens.

    Raises:
        SystemExit: there came no token.
    """
    for file in [model] if model.is_file() else sorted(model.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
    tokens = [str(1000 + number) for number in range(prompt)]
    command = [str(python), str(_HOME / f"first_token_{name}.py"), str(model), str(threads)]
    with tempfile.TemporaryFile() as words:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, *tokens],
            stdout=subprocess.PIPE,
            stderr=words,
            env=_environment(name, threads),
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.communicate()
        if not line.strip().isdigit():
            sys.exit(f"{name} gave no token:\n{_last(words)}")
    return seconds


def _last(words: IO[bytes]) -> str:
    words.seek(0)
    return words.read().decode("utf-8", "replace")[-_LAST_WORDS:]


def _environment(name: str, threads: int) -> dict[str, str]:
    """Give the environment variables in which engines are measured."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    # As our command line sets it (cli/main.py).
    ours = {"GOMP_SPINCOUNT": "10000"} if name == "baichuan" else {}
    return {**os.environ, **quiet, **ours, "OMP_NUM_THREADS": str(threads)}
