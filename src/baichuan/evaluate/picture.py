"""Results as a bar chart: a group of bars per column, a bar per model, with 95 % intervals.

English, but for the models' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baichuan.errors import UsageError
from baichuan.evaluate.results import Result
from baichuan.picture import can_draw, fonts, readable, save

__all__ = ["can_draw", "draw", "require_picture"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = (".png", ".svg", ".pdf")
_COLOURS = ("#2b6cb0", "#90bde6", "#c05621", "#f6ad55", "#4a5568", "#c7ccd1")
#: What four choices give by chance, in per cent.
_CHANCE = 25


def require_picture(target: Path) -> None:
    """Check that a picture can be drawn, before anything is computed.

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
            "Pictures are drawn with matplotlib, which is not installed. "
            "Install it with: pip install 'baichuan-lm[eval]'"
        )


def draw(results: Sequence[Result], names: Sequence[str], target: Path) -> None:
    """Draw results of one benchmark side by side.

    Args:
        results: at least one; all with answers.
        names: of the models, for the legend.
        target: file to write.
    """
    with fonts():
        save(_figure(results, names), target)


def _figure(results: Sequence[Result], names: Sequence[str]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = list(results[0].columns())
    figure = Figure(figsize=(1.5 + 1.3 * len(columns), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(results)
    for number, (result, name) in enumerate(zip(results, names, strict=True)):
        found = result.columns()
        places = [index + (number + 0.5) * width - 0.4 for index in range(len(columns))]
        values = [100 * found[column].value for column in columns]
        errors = [
            [100 * (found[column].value - found[column].low) for column in columns],
            [100 * (found[column].high - found[column].value) for column in columns],
        ]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.bar(places, values, width, yerr=errors, capsize=2, color=colour, label=readable(name))
    axes.axhline(_CHANCE, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("accuracy, %")
    first = results[0].settings
    title = f"{results[0].benchmark.title} {first.split}, {first.shots}-shot"
    axes.set_title(f"{title}, {first.average} average, 95 % intervals", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure
