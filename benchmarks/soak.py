"""Lets careless and hostile clients loose on `baichuan serve` and watches its memory.

    python benchmarks/soak.py --minutes 30

The demo model, many clients at once, kinds of requests as in workers/misuse.py. Writes
results/serving_soak.json and draws docs/serving-memory.png; ends with an error if there was a 5xx
that is not deliberate (503 and 504 are), if anything is left in the caches of requests afterwards,
or if the server's log has a traceback. Needs `matplotlib`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import machine
import matplotlib
import psutil
from workers.misuse import Misuser
from workers.servers import Server

matplotlib.use("Agg")
from matplotlib import pyplot

PICTURE = Path(__file__).parents[1] / "docs" / "serving-memory.png"
_QUESTIONS = Path(__file__).parents[1] / "demo" / "heldout.jsonl"
_CLIENTS = 16
_MAX_BODY = 60_000
_OPTIONS = ("--max-body", _MAX_BODY, "--max-batch", 8, "--max-queue", 12, "--timeout", 20)
_CACHE = ("--cache-tokens", 8192)
_SECONDS_BETWEEN = 5.0
_DELIBERATE = {503, 504}


def main() -> None:
    """Run, judge, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--requests", type=int, default=1000, help="at least so many")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with Server.baichuan(None, arguments.threads, *_OPTIONS, *_CACHE) as server:
        watch = _Watch(server)
        asyncio.run(_soak(server, watch, arguments.minutes, arguments.requests))
        after = _settled(server)
        log = Path(server.log.name).read_text("utf-8", "replace")
    figures = {
        "what": f"the demo model, {_CLIENTS} clients at once",
        "minutes": watch.rows[-1]["minutes"],
        "requests": sum(watch.statuses.values()),
        "statuses": _by_kind(watch.statuses),
        "tracebacks": log.count("Traceback"),
        "afterwards": after,
        "memory": watch.rows,
    }
    faults = _faults(figures, watch.statuses)
    machine.save("serving_soak", {**figures, "faults": faults})
    draw(figures)
    if faults:
        print(log[-5000:], file=sys.stderr)
        sys.exit("; ".join(faults))


class _Watch:
    """What came back, and the memory of both processes over time.

    Attributes:
        minutes: of load; while this process is stopped (by a signal) they do not count.
    """

    def __init__(self, server: Server) -> None:
        self.statuses: Counter[tuple[str, int | None]] = Counter()
        self.rows: list[dict[str, float]] = []
        self._server = server
        self._processes = {"http": psutil.Process(server.pid)}
        self._looked = time.monotonic()
        self.minutes = 0.0

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_SECONDS_BETWEEN)

    def look(self) -> None:
        """Note the memory that only the two processes hold, and what the engine holds."""
        children = self._processes["http"].children()
        self._processes["model"] = max(children, key=lambda child: child.memory_info().rss)
        megabytes = {
            f"{name}_mb": process.memory_full_info().uss / 1e6
            for name, process in self._processes.items()
        }
        figures = self._server.figures()
        held = {
            name: figures[f"baichuan_{metric}"]
            for name, metric in (
                ("held", "kv_tokens"),
                ("kept", "kv_tokens_kept"),
                ("running", "requests_running"),
                ("queued", "requests_queued"),
            )
        }
        before, self._looked = self._looked, time.monotonic()
        self.minutes += min(self._looked - before, 3 * _SECONDS_BETWEEN) / 60
        self.rows.append(
            {
                "minutes": self.minutes,
                "requests": sum(self.statuses.values()),
                **megabytes,
                **held,
            }
        )


async def _soak(server: Server, watch: _Watch, minutes: float, requests: int) -> None:
    rows = [json.loads(line) for line in _QUESTIONS.read_text("utf-8").splitlines()]
    questions = [row["question"] for row in rows]
    watching = asyncio.create_task(watch.run())

    async def misuse(number: int) -> None:
        misuser = Misuser(server.port, number, _MAX_BODY, questions)
        while watch.minutes < minutes or sum(watch.statuses.values()) < requests:
            watch.statuses[await misuser.send()] += 1

    await asyncio.gather(*(misuse(number) for number in range(_CLIENTS)))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def _settled(server: Server) -> dict[str, float]:
    """Wait until the server has nothing to do; give what it holds then."""
    names = ("baichuan_requests_running", "baichuan_requests_queued")
    for _ in range(300):
        figures = server.figures()
        if not any(figures[name] for name in names):
            break
        time.sleep(0.1)
    shown = (*names, "baichuan_kv_tokens", "baichuan_kv_tokens_kept", "baichuan_kv_tokens_limit")
    return {
        **{name: figures[name] for name in shown},
        "model_starts": figures["baichuan_model_starts_total"],
        "failed": figures["baichuan_requests_failed_total"],
        "health": server.get("/health")[0],
    }


def _by_kind(statuses: Counter[tuple[str, int | None]]) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for (kind, status), count in sorted(statuses.items(), key=str):
        kinds.setdefault(kind, {})[str(status or "none")] = count
    return kinds


def _faults(figures: dict[str, Any], statuses: Counter[tuple[str, int | None]]) -> list[str]:
    bad = {s for _, s in statuses if s is not None and s >= 500 and s not in _DELIBERATE}
    after = figures["afterwards"]
    faults = [f"status {status}" for status in sorted(bad)]
    if figures["tracebacks"]:
        faults.append(f"{figures['tracebacks']} tracebacks in the log")
    if after["baichuan_kv_tokens"] or after["baichuan_requests_running"]:
        faults.append("something is held")
    if after["model_starts"] != 1 or after["health"] != 200:
        faults.append("the model process ended")
    return faults


def draw(figures: dict[str, Any]) -> None:
    """Draw memory over time, and the requests so far."""
    rows = figures["memory"]
    minutes = [row["minutes"] for row in rows]
    chart, (memory, requests) = pyplot.subplots(
        2, figsize=(8, 5), height_ratios=[3, 1], sharex=True, layout="constrained"
    )
    for name, colour in (("model", "#d62728"), ("http", "#1f77b4")):
        memory.plot(minutes, [row[f"{name}_mb"] for row in rows], color=colour, label=name)
    memory.set_ylim(bottom=0)
    memory.set_ylabel("MB of its own")
    memory.legend(title="process", loc="center right")
    memory.set_title(f"{figures['requests']:,} requests, {figures['what']}", loc="left")
    requests.plot(minutes, [row["held"] for row in rows], color="grey", linewidth=0.8)
    requests.set_ylabel("held positions")
    requests.set_xlabel("minutes")
    for panel in (memory, requests):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    chart.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
