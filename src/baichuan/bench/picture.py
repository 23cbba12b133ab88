"""A report as a picture: speed, memory, and ALiBi beside RoPE. English, but for the names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from baichuan.bench.original import ALIBI_GAIN, MEMORY_GB
from baichuan.bench.results import Figures, Report, Spread, ratios
from baichuan.errors import UsageError
from baichuan.picture import can_draw, fonts, readable, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = (".png", ".svg", ".pdf")
_BLUE, _LIGHT, _GREY, _RED = "#2b6cb0", "#90bde6", "#c7ccd1", "#c53030"
_HALF_BAR = 0.4


def require_picture(target: Path) -> None:
    """Check that a picture can be drawn, before hours of measuring.

    Raises:
        UsageError: matplotlib is not installed, or the file's ending names no kind of picture.
    """
    if target.suffix.lower() not in _KINDS:
        raise UsageError(
            "The picture {target} should end in one of {allowed}.",
            target=target,
            allowed=", ".join(_KINDS),
        )
    if not can_draw():
        raise UsageError(
            "--plot draws with matplotlib, which is not installed. "
            "Install it with: pip install 'baichuan-lm[bench]'"
        )


def draw(report: Report, target: Path) -> None:
    """Draw the precisions that were measured."""
    with fonts():
        save(_figure(report), target)


def _figure(report: Report) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    positions = [(p, f) for p, f in report.measured if f.positions is not None]
    count = 3 if positions else 2
    figure = Figure(figsize=(4.6 * count, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count)
    _draw_speed(axes[0], report)
    _draw_memory(axes[1], report)
    if positions:
        _draw_positions(axes[2], positions)
    machine = report.machine
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    title = f"{report.name}\n{where}, {machine['memory_gb']} GB"
    figure.suptitle("\n".join(map(readable, title.split("\n"))), fontsize=10)
    return figure


def _draw_speed(axes: Axes, report: Report) -> None:
    names = [name for name, _ in report.measured]
    spreads = [report.decode(figures) for _, figures in report.measured]
    bars = axes.bar(names, [s.median for s in spreads], color=_BLUE, yerr=_errors(spreads, 1))
    axes.bar_label(bars, [f"{s.median:.3g}" for s in spreads], padding=3)
    job = report.job
    _finish(axes, f"generating {job.tokens:,} tokens after {job.prompt:,}", "tokens/s")


def _draw_memory(axes: Axes, report: Report) -> None:
    names = [row.precision for row in report.rows]
    for row in report.rows:
        if row.figures is None:
            total = row.need.total / 1e9
            why = "failed" if row.fits else f"does not fit:\n{total:.3g} needed"
            axes.bar([row.precision], [total], color="none", edgecolor=_GREY, hatch="//")
            axes.text(names.index(row.precision), total, why, ha="center", va="bottom", fontsize=8)
            continue
        _stack(axes, row.precision, names.index(row.precision), row.figures)
    if report.job.is_baichuan_13b:
        known = [name for name in names if name in MEMORY_GB]
        left = [names.index(name) - _HALF_BAR for name in known]
        right = [names.index(name) + _HALF_BAR for name in known]
        theirs = [MEMORY_GB[name] for name in known]
        axes.hlines(theirs, left, right, color=_RED, label="original README (GPU)")
    _finish(axes, "memory at its peak", "GB")


def _stack(axes: Axes, precision: str, place: int, figures: Figures) -> None:
    """Pile up weights, cache and the rest; only the first bar is named in the legend."""
    parts = (
        ("weights", figures.weight_bytes, _BLUE),
        ("cache", figures.cache_bytes, _LIGHT),
        ("all else", figures.memory_bytes - figures.weight_bytes - figures.cache_bytes, _GREY),
    )
    named = set(axes.get_legend_handles_labels()[1])
    bottom = 0.0
    for label, size, colour in parts:
        height = max(size, 0) / 1e9
        shown = None if label in named else label
        axes.bar([precision], [height], bottom=bottom, color=colour, label=shown)
        bottom += height
    axes.text(place, bottom, f"{bottom:.3g}", ha="center", va="bottom")


def _draw_positions(axes: Axes, measured: list[tuple[str, Figures]]) -> None:
    found = [(name, ratios(f.positions)) for name, f in measured if f.positions is not None]
    names = [name for name, _ in found]
    for offset, what, colour in ((-0.2, "prefill", _LIGHT), (0.2, "decode", _BLUE)):
        spreads = [ratio[what] for _, ratio in found]
        there = [index + offset for index in range(len(names))]
        gains = [100 * (s.median - 1) for s in spreads]
        axes.bar(there, gains, 0.36, color=colour, yerr=_errors(spreads, 100), label=what)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(
        ALIBI_GAIN, color=_RED, linestyle="--", label="Baichuan-13B over LLaMA-13B, its README"
    )
    axes.set_xticks(range(len(names)), names)
    _finish(axes, "ALiBi beside RoPE, same weights, in turn", "ALiBi is faster by, %")


def _errors(spreads: list[Spread], factor: float) -> list[list[float]]:
    """Give the distances from the medians to both quartiles."""
    below = [factor * (s.median - s.lower_quartile) for s in spreads]
    above = [factor * (s.upper_quartile - s.median) for s in spreads]
    return [below, above]


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
