"""What --huge-pages changes: decoding from a mapped file and from pages of 2 MB, in turn.

    python benchmarks/huge_pages.py CHECKPOINT [--pairs 5]

Both hold the same quantized checkpoint in memory at the same time. Writes results/huge_pages.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import machine
from workers.process import Worker

_WORK = {"context": 512, "tokens": 16}


def main() -> None:
    """Decode in turn and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    threads, rows = os.cpu_count() or 1, []
    with ExitStack() as running:
        workers = {}
        for name, settings in (("mapped", []), ("huge", ["--huge-pages"])):
            chosen = ("--model", arguments.checkpoint, *settings)
            worker = Worker("baichuan", Path(sys.executable), threads, *chosen)
            workers[name] = running.enter_context(worker)
            worker.ask("decode", **_WORK)
        for _ in range(arguments.pairs):
            rows.append({name: w.seconds("decode", **_WORK) for name, w in workers.items()})
        facts = {name: worker.facts for name, worker in workers.items()}
    machine.save("huge_pages", {"work": _WORK, "rows": rows, "facts": facts, **_summary(rows)})


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    ratios = sorted(row["mapped"] / row["huge"] for row in rows)
    return {"mapped_over_huge": {"median": statistics.median(ratios), "all": ratios}}


if __name__ == "__main__":
    main()
