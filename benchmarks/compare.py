"""Compares this package with llama.cpp and OpenVINO at the full 13B's geometry, alternating.

    python benchmarks/compare.py --directory DIRECTORY --peers PYTHON [--bits 3|4|8] [--smoke]

DIRECTORY takes the models (workers/models.py), 27 GB and more; PYTHON is an interpreter that has
llama-cpp-python, gguf and openvino. Figures are measured in pairs, engines in turn, the machine's
limits between them, and written to results/compare_intBITS_FIGURE.json. 3 bits are a mix of 3 and
4, 3.6 on average, beside Q4_0. `--layers` takes fewer, at full width, and names the files after
the processor's kernels. `--smoke` runs all of it with a tiny model and writes nothing.

On a processor with AMX, llama.cpp built by GCC 12 crashes at its first prompt (dropped stores to
the tile configuration) unless built from source with CXXFLAGS="-fno-tree-dse -fno-dse".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import psutil
import torch
from workers.limits import Limits
from workers.models import Models
from workers.process import Worker, first_token_seconds

from baichuan.kernels import native
from baichuan.model.configuration import BaichuanConfig

_GGUF = {3: "q4_0", 4: "q4_0", 8: "q8_0"}
#: Times llama.cpp's speed that decoding must reach.
_DECODE = {3: 1.3, 4: 1.1, 8: 1.04}
_OPENVINO = "openvino"
#: Of bfloat16 and float16 cache entries alike.
_CACHE_BYTES = 2
#: Both kinds of llama.cpp's attention; the better one counts.
_FLASH = (0, 1)


@dataclass(frozen=True)
class Sizes:
    """How long everything is."""

    context: int = 512
    prompt: int = 512
    decode: int = 16
    sequences: int = 8
    memory_context: int = 2048
    cold_prompt: int = 16
    openvino_layers: int = 6
    buffer_bytes: int = 3_000_000_000


_SMOKE = Sizes(40, 48, 3, 3, 64, 16, 2, 100_000_000)


@dataclass(frozen=True)
class Ask:
    """One thing to time: under which label, by which engine, and what."""

    label: str
    engine: str
    do: str
    arguments: dict[str, int]


class Comparison:
    """The settings of one run, the models, and how to start each engine."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.bits, self.threads = arguments.bits, arguments.threads
        self.huge_pages = arguments.huge_pages
        self.pairs = 2 if arguments.smoke else arguments.pairs
        self.sizes = _SMOKE if arguments.smoke else Sizes()
        self.peers: Path = arguments.peers
        self.models = Models(arguments.directory, arguments.smoke, arguments.layers)
        self.together = self.bits < 8 and not arguments.apart
        self.limits = Limits(self.threads)

    @property
    def config(self) -> BaichuanConfig:
        """The network's shape."""
        return self.models.config

    def start(self, engine: str, positions: int | None = None) -> Worker:
        """Start an engine; `positions` is the room that llama.cpp makes in its cache."""
        if engine == "baichuan":
            python, settings = Path(sys.executable), ["--model", self.models.quantized(self.bits)]
            settings += ["--huge-pages"] if self.huge_pages else []
        elif engine == "llama":
            positions = positions or max(self.sizes.context, self.sizes.prompt) + 128
            file = self.models.gguf(_GGUF[self.bits])
            python, settings = self.peers, ["--model", file, "--positions", positions]
        else:
            shape = self.config.hidden_size, self.config.intermediate_size
            python = self.peers
            settings = ["--hidden", shape[0], "--inner", shape[1]]
            settings += ["--layers", self.sizes.openvino_layers]
        return Worker(engine, python, self.threads, *settings)

    def alternate(
        self, asks: list[Ask], between: Callable[[], dict[str, float]]
    ) -> tuple[list[dict[str, float]], dict[str, Any]]:
        """Ask everything in turn, `pairs` times.

        Where the engines do not fit into memory together, each is started and ended for each pair.

        Args:
            asks: in their order.
            between: measured after each pair.

        Returns:
            For each pair label to seconds, with what `between` gave; and each engine's facts.
        """
        engines = list(dict.fromkeys(ask.engine for ask in asks))
        rows, facts = [], {}
        with ExitStack() as running:
            workers = {}
            if self.together:
                workers = {e: running.enter_context(self.start(e)) for e in engines}
                for ask in asks:
                    workers[ask.engine].ask(ask.do, **ask.arguments)
            for number in range(self.pairs):
                row: dict[str, float] = {"major_faults": 0}
                for engine in engines:
                    with ExitStack() as alone:
                        worker = workers.get(engine) or alone.enter_context(self.start(engine))
                        mine = [ask for ask in asks if ask.engine == engine]
                        self._time(worker, mine, row, warm=engine in workers)
                        facts[engine] = worker.facts
                row |= between()
                rows.append(row)
                print(f"pair {number + 1}/{self.pairs}: {row}", file=sys.stderr)
        return rows, facts

    def _time(self, worker: Worker, asks: list[Ask], row: dict[str, float], warm: bool) -> None:
        for ask in asks:
            if not warm:
                worker.ask(ask.do, **ask.arguments)
            faults = worker.major_faults
            row[ask.label] = worker.seconds(ask.do, **ask.arguments)
            row["major_faults"] += worker.major_faults - faults

    def read_limit(self) -> dict[str, float]:
        """Measure the memory."""
        measured = self.limits.bandwidth(self.sizes.buffer_bytes)["read_gb_per_second"]
        return {"read_gb_per_second": measured["median"]}

    def int8_limits(self) -> dict[str, float]:
        """Measure the arithmetic."""
        measured = self.limits.int8()
        return {k: v["median"] for k, v in measured.items() if k.endswith("gmac_per_second")}


def decode(run: Comparison) -> dict[str, Any]:
    """Time one token behind a cache, and the share of the memory's bandwidth that this is."""
    work = {"context": run.sizes.context, "tokens": run.sizes.decode}
    asks = [Ask("baichuan", "baichuan", "decode", work), *_llama("decode", work)]
    rows, facts = run.alternate(asks, run.read_limit)
    best = _best(rows)
    shares, peer_shares = [], []
    for row in rows:
        limit = row["read_gb_per_second"] * 1e9
        shares.append(_bytes(run, facts["baichuan"]) / row["baichuan"] / limit)
        peer_shares.append(_bytes(run, facts["llama"]) / row[best] / limit)
    ratio = _spread([row[best] / row["baichuan"] for row in rows])
    return {
        "what": f"decode, batch 1, {run.sizes.context} tokens in the cache",
        "tokens_per_second": _rates(rows, [ask.label for ask in asks], 1),
        "bytes_per_token": {name: _bytes(run, facts[name]) for name in facts},
        "ratio_to_llama": ratio,
        "share_of_read_bandwidth": _spread(shares),
        "share_of_read_bandwidth_llama": _spread(peer_shares),
        "bars": [
            _bar(f"x llama.cpp ({best})", ratio, _DECODE[run.bits]),
            _bar("of the read bandwidth", _spread(shares), 0.92),
        ],
        **_evidence(run, rows, facts),
    }


def prefill(run: Comparison) -> dict[str, Any]:
    """Time a prompt, and the share of the int8 peaks that this is."""
    config, prompt = run.config, run.sizes.prompt
    asks = [
        Ask("baichuan", "baichuan", "prefill", {"tokens": prompt}),
        *_llama("prefill", {"tokens": prompt}),
        Ask(_OPENVINO, _OPENVINO, "prefill", {"tokens": prompt}),
    ]
    rows, facts = run.alternate(asks, run.int8_limits)
    scale = config.num_hidden_layers / run.sizes.openvino_layers
    for row in rows:
        row[_OPENVINO] *= scale
    best, gmacs = _best(rows), _gmacs(config, prompt)
    names = sorted(name for name in rows[0] if name.endswith("gmac_per_second"))
    peaks = {n: _spread([gmacs / row["baichuan"] / row[n] for row in rows]) for n in names}
    ratio = _spread([row[best] / row["baichuan"] for row in rows])
    openvino = _spread([row[_OPENVINO] / row["baichuan"] for row in rows])
    bars = [
        _bar(f"x llama.cpp ({best})", ratio, 2.5),
        _bar("x OpenVINO's linears alone", openvino, 1.25),
    ]
    bars += [_bar(f"of {name}", peaks[name], 0.7) for name in names if name.startswith("vnni")]
    return {
        "what": f"prefill of {prompt} tokens",
        "tokens_per_second": _rates(rows, [ask.label for ask in asks], prompt),
        "openvino_is": f"linears alone, {run.sizes.openvino_layers} layers' time x {scale:.3g}",
        "gmac": gmacs,
        "ratio_to_llama": ratio,
        "ratio_to_openvino": openvino,
        "share_of_peak": peaks,
        "bars": bars,
        **_evidence(run, rows, facts),
    }


def batch(run: Comparison) -> dict[str, Any]:
    """Time several sequences at once against one."""
    many = run.sizes.sequences
    one = {"context": run.sizes.context, "tokens": run.sizes.decode}
    asks = [
        Ask("one", "baichuan", "decode", {**one, "sequences": 1}),
        Ask("many", "baichuan", "decode", {**one, "sequences": many}),
    ]
    rows, facts = run.alternate(asks, run.read_limit)
    ratio = _spread([many * row["one"] / row["many"] for row in rows])
    return {
        "what": f"{many} sequences at once, each with {run.sizes.context} tokens in its cache",
        "tokens_per_second": {**_rates(rows, ["one"], 1), **_rates(rows, ["many"], many)},
        "ratio_to_one": ratio,
        "bars": [_bar("x batch 1", ratio, 4)],
        **_evidence(run, rows, facts),
    }


def memory(run: Comparison) -> dict[str, Any]:
    """Give what each engine holds with a full cache."""
    tokens = run.sizes.decode
    work = {"context": run.sizes.memory_context - tokens - 1, "tokens": tokens}
    figures: dict[str, Any] = {"what": f"memory with {run.sizes.memory_context} tokens of cache"}
    for engine, more in (("baichuan", {}), ("llama", {"flash": 1})):
        with run.start(engine, run.sizes.memory_context) as worker:
            worker.ask("decode", **work, **more)
            figures[engine] = worker.ask("memory")
            figures[f"{engine}_facts"] = worker.facts
    most, peak = (9.2 if run.bits < 8 else 15.5), figures["baichuan"]["peak_gb"]
    bar = {"what": "GB at most", "needed": most, "measured": peak, "met": peak <= most}
    return {**figures, "bars": [bar]}


def cold(run: Comparison) -> dict[str, Any]:
    """Time from the start of a process to the first token, weights in the page cache."""
    programs = {
        "baichuan": (Path(sys.executable), run.models.quantized(run.bits)),
        "llama": (run.peers, run.models.gguf(_GGUF[run.bits])),
    }
    rows = []
    for number in range(run.pairs):
        row = {
            name: first_token_seconds(name, python, model, run.threads, run.sizes.cold_prompt)
            for name, (python, model) in programs.items()
        }
        rows.append(row)
        print(f"pair {number + 1}/{run.pairs}: {row}", file=sys.stderr)
    ratio = _spread([row["baichuan"] / row["llama"] for row in rows])
    bar = {"what": "x llama.cpp's at most", "needed": 1.3, "measured": ratio["median"]}
    return {
        "what": f"cold start: process start to first token of {run.sizes.cold_prompt} tokens",
        "seconds": {name: _spread([row[name] for row in rows]) for name in rows[0]},
        "ratio_to_llama": ratio,
        "bars": [{**bar, "met": ratio["median"] <= 1.3}],
        "rows": rows,
    }


def agreement(run: Comparison) -> dict[str, Any]:
    """Check, on a thin network in float32, that llama.cpp computes the same from our GGUF.

    Raises:
        SystemExit: it does not, so that no speed of it is worth comparing.
    """
    thin = Models(run.models.directory, True)
    ours = ["--model", thin.plain(), "--dtype", "float32"]
    theirs = ["--model", thin.gguf("f32")]
    rows = []
    with (
        Worker("baichuan", Path(sys.executable), run.threads, *ours) as baichuan,
        Worker("llama", run.peers, run.threads, *theirs) as llama,
    ):
        for length in (16, 600):
            expected = torch.tensor(baichuan.ask("logits", tokens=length)["logits"])
            for flash in _FLASH:
                answer = llama.ask("logits", tokens=length, flash=flash)
                worst = (torch.tensor(answer["logits"]) - expected).abs().max() / expected.std()
                rows.append({"tokens": length, "flash": flash, "worst_of_spread": float(worst)})
    if any(not row["worst_of_spread"] < 0.05 for row in rows):  # llama.cpp's cache is float16
        sys.exit(f"llama.cpp's logits differ from ours: {rows}")
    return {"what": "worst difference of logits, in their standard deviations", "rows": rows}


def _llama(do: str, arguments: dict[str, int]) -> list[Ask]:
    return [Ask(f"llama_fa{f}", "llama", do, {**arguments, "flash": f}) for f in _FLASH]


def _best(rows: list[dict[str, float]]) -> str:
    """Name the faster one of llama.cpp's two kinds of attention."""
    names = [name for name in rows[0] if name.startswith("llama_fa")]
    return min(names, key=lambda name: statistics.median(row[name] for row in rows))


def _bytes(run: Comparison, facts: dict[str, Any]) -> int:
    """Count what one token reads: weights, scales, head, and keys and values so far."""
    positions = run.sizes.context + 1 + run.sizes.decode / 2
    entries = 2 * run.config.num_hidden_layers * run.config.hidden_size
    return int(facts["weight_bytes"] + positions * entries * _CACHE_BYTES)


def _gmacs(config: BaichuanConfig, prompt: int) -> float:
    """Count a prompt's products in linear layers; the head sees the last position alone."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * hidden * hidden + 3 * hidden * inner
    return (prompt * config.num_hidden_layers * layer + hidden * config.vocab_size) / 1e9


def _spread(values: list[float]) -> dict[str, float]:
    """Give the median and the quartiles."""
    quarters = statistics.quantiles(values, n=4, method="inclusive")
    return dict(zip(("lower_quartile", "median", "upper_quartile"), quarters, strict=True))


def _rates(rows: list[dict[str, float]], labels: list[str], tokens: int) -> dict[str, Any]:
    return {label: _spread([tokens / row[label] for row in rows]) for label in labels}


def _bar(what: str, measured: dict[str, float], least: float) -> dict[str, Any]:
    median = measured["median"]
    return {"what": what, "needed": least, "measured": median, "met": median >= least}


def _evidence(run: Comparison, rows: list[dict[str, float]], facts: Any) -> dict[str, Any]:
    where = {"layers": run.config.num_hidden_layers, "engines_together_in_memory": run.together}
    return {**where, "engines": facts, "rows": rows}


_FIGURES = {
    "agreement": agreement,
    "decode": decode,
    "prefill": prefill,
    "batch": batch,
    "memory": memory,
    "cold": cold,
}
_BY_BITS = {3: ("decode", "prefill"), 4: tuple(_FIGURES), 8: ("agreement", "decode", "memory")}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="of the models")
    parser.add_argument("--peers", type=Path, required=True, help="interpreter of the peers")
    parser.add_argument("--bits", type=int, choices=(3, 4, 8), default=4)
    parser.add_argument("--layers", type=int, help="fewer layers than the 13B's 40")
    parser.add_argument("--figures", nargs="+", choices=_FIGURES, help="only these")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--huge-pages", action="store_true", help="our option of that name")
    parser.add_argument("--apart", action="store_true", help="one engine in memory at a time")
    parser.add_argument("--smoke", action="store_true", help="a tiny model; writes no results")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error("--pairs is at least 2: one pair has no quartiles")
    return arguments


def main() -> None:
    """Measure every figure and write each as soon as it is there."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    run = Comparison(arguments)
    kernels = "" if arguments.layers is None else f"_{native.chosen()}"
    for name in arguments.figures or _BY_BITS[arguments.bits]:
        print(f"{name}, int{arguments.bits}", file=sys.stderr)
        before = psutil.cpu_percent(interval=2)
        figures = {"cpu_busy_before_percent": before, **_FIGURES[name](run)}
        if arguments.smoke:
            print(json.dumps({name: figures}, indent=2))
        else:
            machine.save(f"compare_int{arguments.bits}_{name}{kernels}", figures)


if __name__ == "__main__":
    main()
