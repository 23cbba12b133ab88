"""The worker's side of a comparison: answers JSON lines, and what every worker measures alike.

Standard library alone: workers run in the virtual environments of their engines.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Token ids below are control tokens in Baichuan's vocabulary.
_FIRST_WORD = 649


def serve(actions: dict[str, Callable[..., Any]]) -> None:
    """Answer each line {"do": name, ...} with what the action of that name returns, as a line.

    Whatever libraries print goes to standard error, so that the answers stand alone.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(json.dumps({"ready": sorted(actions)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = actions[request.pop("do")](**request)
        print(json.dumps(answer), file=answers, flush=True)


def prompt(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    """Give random token ids, the same for every engine."""
    first = min(_FIRST_WORD, vocabulary // 2)
    return random.Random(seed).choices(range(first, vocabulary), k=length)


def memory() -> dict[str, float]:
    """Give this process's memory in GB, as Linux counts it.

    `peak` is the most that was resident at a time, mapped files included; `own` is what only this
    process holds, `mapped` what the files hold, `share` is all of it with shared pages divided.
    """
    status = _kilobytes(Path("/proc/self/status"))
    rollup = _kilobytes(Path("/proc/self/smaps_rollup"))
    return {
        "peak_gb": status["VmHWM"],  # not ru_maxrss: a child begins with its parent's
        "own_gb": status["RssAnon"],
        "mapped_gb": status["RssFile"],
        "share_gb": rollup["Pss"],
    }


def _kilobytes(path: Path) -> dict[str, float]:
    fields = [line.split() for line in path.read_text("ascii").splitlines()]
    return {f[0].rstrip(":"): int(f[1]) * 1024 / 1e9 for f in fields if f[-1] == "kB"}
