"""Precision after precision, each in a worker process that has the machine to itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import IO, Any

import psutil

from baichuan.bench.job import Job
from baichuan.bench.memory import available, need
from baichuan.bench.results import Figures, Row
from baichuan.errors import BaichuanError
from baichuan.language import translate

#: Told the precision, what goes on, how far it is, and its end.
Tell = Callable[[str, str, int, int], None]

_LAST_WORDS = 2000
#: For how long to look whether other programs are at work.
_LOOK_SECONDS = 0.5


def run(job: Job, precisions: list[str], tell: Tell) -> Generator[Row, None, None]:
    """Measure one precision after the other; what does not fit into memory is not run.

    Closing the generator, or an exception such as Ctrl+C, ends the worker.

    Raises:
        BaichuanError: the checkpoint cannot be loaded.
    """
    for precision in precisions:
        row = Row(precision, need(job, precision), available(job.chosen_device))
        if row.fits:
            busy = psutil.cpu_percent(interval=_LOOK_SECONDS)
            figures, failure = _measured_apart(job, precision, tell)
            row = replace(row, busy=busy, figures=figures, failure=failure)
        yield row


def _measured_apart(job: Job, precision: str, tell: Tell) -> tuple[Figures | None, str | None]:
    """Give the figures, or the last words of a worker that did not come to any."""
    command = [sys.executable, "-m", "baichuan.bench.worker", job.to_json(), precision]
    threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            env={**os.environ, **quiet, **threads},
            text=True,
            encoding="utf-8",
        ) as worker,
    ):
        try:
            assert worker.stdout is not None
            answer = _listen(worker.stdout, precision, tell)
            code = worker.wait()
        finally:
            worker.kill()  # does nothing to one that has ended
        if answer is None:
            ended = translate("its process ended with code {code}", code=code)
            return None, f"{ended} {_last(words)}".strip()
    if "error" in answer:
        raise BaichuanError("{precision}: {reason}", precision=precision, reason=answer["error"])
    return Figures.from_dict(answer["figures"]), None


def _listen(lines: IO[str], precision: str, tell: Tell) -> dict[str, Any] | None:
    """Pass progress on until the last line; give that line, or None if there came none."""
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        if "stage" not in message:
            return message
        tell(precision, message["stage"], message["done"], message["total"])
    return None


def _last(words: IO[bytes]) -> str:
    """Give the last line that was written, which names the error."""
    words.seek(0)
    lines = words.read()[-_LAST_WORDS:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
