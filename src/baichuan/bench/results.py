"""Figures of a whole benchmark: from workers' JSON to medians, and to the file of `--json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baichuan.bench.job import Job
from baichuan.bench.measure import Positions
from baichuan.bench.memory import Need
from baichuan.outputs import write_output


@dataclass(frozen=True)
class Spread:
    """The middle of several values and where half of them lie."""

    lower_quartile: float
    median: float
    upper_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise values, at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Figures:
    """What a worker measured in one precision; times are of each repeat.

    Attributes:
        dtype: of activations, cache, and weights that are not quantized.
        threads: that torch used.
        load_seconds: from the files to a model; None for random weights.
        prefill_seconds: from the start to the first token.
        decode_seconds: from the first to the last token.
        weight_bytes, cache_bytes: of the network, and set aside at the end of an answer.
        peak_bytes: most memory resident in the process, loading included.
        answering_peak_bytes: the same after loading; None where the system cannot tell it apart.
        gpu_peak_bytes: most memory that torch took on the GPU; None on a CPU.
        positions: ALiBi beside RoPE; None if that was left out.
    """

    dtype: str
    threads: int
    load_seconds: float | None
    prefill_seconds: list[float]
    decode_seconds: list[float]
    weight_bytes: int
    cache_bytes: int
    peak_bytes: int
    answering_peak_bytes: int | None
    gpu_peak_bytes: int | None
    positions: Positions | None

    @classmethod
    def from_dict(cls, sent: dict[str, Any]) -> Figures:
        """Read what a worker sent."""
        positions = sent["positions"]
        return cls(**{**sent, "positions": positions and Positions(**positions)})

    @property
    def memory_bytes(self) -> int:
        """The peak to compare with the original README's: of the GPU if the weights are there."""
        return self.peak_bytes if self.gpu_peak_bytes is None else self.gpu_peak_bytes


@dataclass(frozen=True)
class Row:
    """One precision: its figures, or why there are none.

    Attributes:
        precision: its name.
        need: computed from shapes.
        free: bytes that were free before.
        busy: per cent of the processors that other programs used before.
        figures: None if it was not run or did not end well.
        failure: what its process said last; None if it was not run.
    """

    precision: str
    need: Need
    free: int
    busy: float = 0.0
    figures: Figures | None = None
    failure: str | None = None

    @property
    def fits(self) -> bool:
        """Whether there was room for it."""
        return self.need.total <= self.free


@dataclass(frozen=True)
class Report:
    """All rows and what they were measured on.

    Attributes:
        name: of the model, for people.
        job: what was measured.
        layers: that the network has, and that the whole one has.
        context: tokens that it was trained on.
        quantized: how a checkpoint that was quantized already is; None for others.
        machine: from `machine.facts`.
        rows: finished so far.
    """

    name: str
    job: Job
    layers: tuple[int, int]
    quantized: str | None
    machine: dict[str, Any]
    rows: list[Row]

    @property
    def measured(self) -> list[tuple[str, Figures]]:
        """Precisions that have figures."""
        return [(row.precision, row.figures) for row in self.rows if row.figures is not None]

    def first_token(self, figures: Figures) -> Spread:
        """Give the seconds from the start to the first token."""
        return Spread.of(figures.prefill_seconds)

    def prefill(self, figures: Figures) -> Spread:
        """Give the prompt tokens per second."""
        return Spread.of([self.job.prompt / seconds for seconds in figures.prefill_seconds])

    def decode(self, figures: Figures) -> Spread:
        """Give the generated tokens per second, without the first, which the prompt gives."""
        return Spread.of([(self.job.tokens - 1) / seconds for seconds in figures.decode_seconds])

    def to_dict(self) -> dict[str, Any]:
        """Give what is saved."""
        workload = {**asdict(self.job), "model": self.name}
        return {
            "machine": self.machine,
            "workload": {
                **workload,
                "layers": self.layers[0],
                "layers_of_the_whole": self.layers[1],
                "device": self.job.chosen_device,
                "quantized_already": self.quantized,
                "context_of_generated_tokens": [
                    self.job.prompt + 1,
                    self.job.prompt + self.job.tokens,
                ],
            },
            "precisions": [self._row(row) for row in self.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        kept: dict[str, Any] = {
            "precision": row.precision,
            "fits": row.fits,
            "computed_bytes": {**asdict(row.need), "total": row.need.total},
            "free_bytes": row.free,
            "busy_before_percent": row.busy,
            "failure": row.failure,
        }
        if row.figures is None:
            return kept
        summary = {
            "prefill_tokens_per_second": asdict(self.prefill(row.figures)),
            "first_token_seconds": asdict(self.first_token(row.figures)),
            "decode_tokens_per_second": asdict(self.decode(row.figures)),
        }
        if row.figures.positions is not None:
            for what, spread in ratios(row.figures.positions).items():
                summary[f"alibi_to_rope_{what}"] = asdict(spread)
        return {**kept, **summary, "measured": asdict(row.figures)}

    def save(self, target: Path) -> None:
        """Write it as JSON, at one stroke."""
        write_output(target, json.dumps(self.to_dict(), indent=2).encode() + b"\n")


def ratios(positions: Positions) -> dict[str, Spread]:
    """Give how many times as fast as RoPE ALiBi was, pair by pair: "prefill" and "decode"."""
    return {
        what: Spread.of([r / a for a, r in zip(taken["alibi"], taken["rope"], strict=True)])
        for what, taken in (
            ("prefill", positions.prefill_seconds),
            ("decode", positions.turn_seconds),
        )
    }


def speed_in_turns(positions: Positions, side: str) -> Spread:
    """Give the tokens per second of "alibi" or "rope"."""
    return Spread.of([positions.turn_tokens / taken for taken in positions.turn_seconds[side]])
