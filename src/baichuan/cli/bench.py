"""`baichuan bench`: speed and memory of every precision, as tables, JSON and a picture."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from baichuan.bench.job import RANDOM, Job, chosen_precisions
from baichuan.bench.machine import facts
from baichuan.bench.original import ALIBI_GAIN, MEMORY_GB, TOKENS_PER_SECOND
from baichuan.bench.picture import draw, require_picture
from baichuan.bench.results import Report, Row, Spread, ratios, speed_in_turns
from baichuan.bench.run import run
from baichuan.cli.info import size
from baichuan.language import translate
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.quantization import describe
from baichuan.outputs import require_writable

#: Per cent of the processors; the tables mention more.
_BUSY = 10


def run_bench(job: Job, precisions: str | None, saved: Path | None, picture: Path | None) -> None:
    """Measure, with a bar, and print the tables; interrupted, those of what is finished.

    Args:
        job: what to measure; its model may be a hub name.
        precisions: names parted by commas; None for all.
        saved: file for the JSON, written after every precision.
        picture: file for the picture.

    Raises:
        BaichuanError: the checkpoint cannot be loaded, a value is not allowed, or a file cannot be
            written.
    """
    require_writable(saved, picture)
    if picture is not None:
        require_picture(picture)
    names = [] if precisions is None else [name.strip() for name in precisions.split(",")]
    chosen = chosen_precisions(job, names)
    report = _empty_report(job)
    local = job if job.model is None else replace(job, model=str(job.directory))
    try:
        _measure(report, local, chosen, saved)
    finally:
        if report.rows:
            _print(report)
    if picture is not None and report.measured:
        draw(report, picture)
    if any(row.failure for row in report.rows):
        raise SystemExit(1)


def _empty_report(job: Job) -> Report:
    config, name = job.config, job.model or translate("demo model")
    layers = whole = config.num_hidden_layers
    if job.random is not None:
        whole = BaichuanConfig.preset(job.random).num_hidden_layers
        name = translate("{model}, random weights", model=RANDOM[job.random])
    if layers < whole:
        name += translate(", {some} of {whole} layers", some=layers, whole=whole)
    quantized = None if job.quantized is None else describe(job.quantized)
    machine = facts(job.chosen_device)
    machine["threads"] = job.threads or torch.get_num_threads()
    return Report(name, job, (layers, whole), quantized, machine, [])


class _Speed(ProgressColumn):
    """Tokens or bytes per second of what goes on; nothing where the bar counts something else."""

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if not speed or unit is None:
            return Text("")
        return Text(f"{size(speed)}/s" if unit == "bytes" else f"{_number(speed)} tokens/s")


class _Bar:
    """One bar, which begins anew with every stage of every precision."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(translate("starting"), total=None, unit=None)
        self._stages = _stages()
        self._shown: tuple[str, str] | None = None

    def tell(self, precision: str, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if self._shown != (precision, stage):
            self._shown = precision, stage
            words, unit = self._stages[stage]
            self._progress.reset(self._task, description=f"{precision}: {words}", unit=unit)
        self._progress.update(self._task, completed=done, total=total)


def _measure(report: Report, job: Job, precisions: list[str], saved: Path | None) -> None:
    """Fill in the report's rows, one after the other, and save them."""
    notes = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), _Speed(), TimeRemainingColumn())
    hidden = not notes.is_terminal
    with (
        Progress(*columns, console=notes, transient=True, disable=hidden) as progress,
        closing(run(job, precisions, _Bar(progress).tell)) as rows,
    ):
        for row in rows:
            report.rows.append(row)
            if saved is not None:
                report.save(saved)


def _stages() -> dict[str, tuple[str, str | None]]:
    """Give the words for each stage, and what its progress counts."""
    return {
        "load": (translate("loading"), None),
        "fill": (translate("making random weights"), "bytes"),
        "warm-up": (translate("warming up"), None),
        "prompt": (translate("prompt"), "tokens"),
        "answer": (translate("generating"), "tokens"),
        "compare-prompts": (translate("ALiBi and RoPE, prompts"), None),
        "compare-answers": (translate("ALiBi and RoPE, generating"), "tokens"),
    }


def _print(report: Report) -> None:
    # Names and errors may hold brackets, which are no markup.
    console = Console(highlight=False, markup=False, emoji=False)
    for table in (_speed_table(report), _memory_table(report), _positions_table(report)):
        if table is not None:
            console.print(table)
    for remark in _remarks(report):
        console.print(Text(remark, style="dim"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _speed_table(report: Report) -> Table:
    table = _table(
        translate("{name}: tokens per second (quartiles)", name=report.name),
        translate("precision"),
        translate("loading"),
        translate("first token"),
        translate("prefill"),
        translate("decode"),
    )
    for row in report.rows:
        figures = row.figures
        if figures is None:
            table.add_row(row.precision, *["—"] * 3, _why_not(row))
            continue
        load = figures.load_seconds
        table.add_row(
            row.precision,
            "—" if load is None else _seconds(load),
            _seconds(report.first_token(figures).median),
            _spread(report.prefill(figures)),
            _spread(report.decode(figures)),
        )
    return table


def _memory_table(report: Report) -> Table:
    theirs = report.job.is_baichuan_13b
    table = _table(
        translate("Memory"),
        translate("precision"),
        translate("peak, all told"),
        translate("after loading"),
        translate("weights"),
        translate("cache"),
        *([translate("README, GPU")] if theirs else []),
    )
    for row in report.rows:
        known = MEMORY_GB.get(row.precision)
        last = ["—" if known is None else f"{known} GB"] if theirs else []
        figures = row.figures
        if figures is None:
            sizes = (row.need.weights, row.need.cache)
            computed = [f"≈ {size(count)}" for count in (row.need.total, *sizes)]
            table.add_row(row.precision, computed[0], "—", *computed[1:], *last)
            continue
        after = figures.answering_peak_bytes
        table.add_row(
            row.precision,
            size(figures.memory_bytes),
            "—" if after is None or figures.gpu_peak_bytes is not None else size(after),
            size(figures.weight_bytes),
            size(figures.cache_bytes),
            *last,
        )
    return table


def _positions_table(report: Report) -> Table | None:
    table = _table(
        translate("ALiBi and RoPE with the same weights, in turn"),
        translate("precision"),
        "ALiBi",
        "RoPE",
        translate("ALiBi faster, decode"),
        translate("prefill"),
    )
    for name, figures in report.measured:
        if figures.positions is not None:
            speeds = [speed_in_turns(figures.positions, side).median for side in ("alibi", "rope")]
            gains = ratios(figures.positions)
            cells = [*map(_number, speeds), _gain(gains["decode"]), _gain(gains["prefill"])]
            table.add_row(name, *cells)
    return table if table.row_count else None


def _remarks(report: Report) -> list[str]:
    """Say what the figures are, under them."""
    job, machine = report.job, report.machine
    last = job.prompt + job.tokens
    said = [
        translate(
            "decode: mean over {tokens:,} tokens at batch 1, behind a prompt of {prompt:,} "
            "(positions {first:,} to {last:,}); prefill: that prompt. Median of {repeats} "
            "(quartiles).",
            tokens=job.tokens,
            prompt=job.prompt,
            first=job.prompt + 1,
            last=last,
            repeats=job.repeats,
        )
    ]
    if report.quantized is not None:
        said.append(
            translate(
                "This checkpoint is quantized already ({scheme}); it is measured as it is.",
                scheme=report.quantized,
            )
        )
    busiest = max(row.busy for row in report.rows)
    if busiest >= _BUSY:
        said.append(
            translate(
                "Other programs kept the processors busy just before (up to {busy:.0f} %); measure "
                "again when they rest.",
                busy=busiest,
            )
        )
    if any(row.figures is None for row in report.rows):
        said.append(
            translate("What does not fit into free memory is not run; sizes with ≈ are computed.")
        )
    if any(figures.positions for _, figures in report.measured):
        said.append(
            translate(
                "The README of Baichuan-13B: {ours} tokens/s, LLaMA-13B {theirs}, one A100, "
                "float16; it credits ALiBi with {gain} %.",
                ours=TOKENS_PER_SECOND["Baichuan-13B"],
                theirs=TOKENS_PER_SECOND["LLaMA-13B"],
                gain=ALIBI_GAIN,
            )
        )
    if "gpu" in machine:
        said.append(
            translate("On a GPU: nobody has checked these figures, for the authors had none.")
        )
    where = machine.get("gpu") or machine["cpu"]
    versions = machine["versions"]
    said.append(
        translate(
            "{where}; {threads} of {cores} processors, {memory} GB; kernels {kernels}; "
            "baichuan {version}, torch {torch}.",
            where=where,
            threads=machine["threads"],
            cores=machine["cores"],
            memory=machine["memory_gb"],
            kernels=machine["kernels"],
            version=versions["baichuan"],
            torch=versions["torch"],
        )
    )
    return said


def _why_not(row: Row) -> str:
    if row.failure is not None:
        return translate("failed: {reason}", reason=row.failure)
    return translate("does not fit: {free} free", free=size(row.free))


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _number(value: float) -> str:
    """Write a speed with three digits at least: `3.17`, `90.9`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(spread: Spread) -> str:
    low, high = _number(spread.lower_quartile), _number(spread.upper_quartile)
    return f"{_number(spread.median)} ({low}–{high})"


def _gain(ratio: Spread) -> str:
    """Write a ratio of speeds as per cent."""
    low, middle, high = (
        f"{100 * (value - 1):+.1f}"
        for value in (ratio.lower_quartile, ratio.median, ratio.upper_quartile)
    )
    return f"{middle} % ({low}, {high})"
