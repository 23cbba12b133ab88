"""The loss curve of a run, as training_loss.json and .png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baichuan.errors import UsageError
from baichuan.files import write_at_one_stroke
from baichuan.language import phrase
from baichuan.picture import can_draw, fonts, label, readable, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = "training_loss"
#: Files of a curve.
CURVE = (f"{_NAME}.json", f"{_NAME}.png")
#: Share of the curve's length that the smoothed line averages over, to each side.
_WIDTH = 1 / 30
#: Points from which a curve is smoothed, and points of the smoothed line.
_LONG, _DRAWN = 20, 400
_TITLE, _STEPS = phrase("Training loss"), phrase("optimizer step")
_SMOOTHED = phrase("smoothed")
_UNITS = {
    "sft": phrase("loss (nats per token)"),
    "pt": phrase("loss (nats per token)"),
    "dpo": phrase("loss (nats per pair)"),
}

#: (step, loss) in the order of the steps.
Points = list[tuple[int, float]]


def require_picture() -> None:
    """Check that a picture can be drawn, before hours of training.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if not can_draw():
        raise UsageError(
            "--plot_loss draws with matplotlib, which is not installed. "
            "Install it with: pip install 'baichuan-lm[train]'"
        )


def write_curve(
    records: Sequence[Mapping[str, Any]], directory: Path, name: str = "", stage: str = "sft"
) -> None:
    """Write the losses of a Trainer's log_history as JSON and as a picture.

    Args:
        records: the log_history.
        directory: where training_loss.json and training_loss.png are written.
        name: of the run, for the title.
        stage: sft, pt or dpo, which decides the unit.
    """
    content = json.dumps({"records": list(records)}, indent=1)
    write_at_one_stroke(directory / f"{_NAME}.json", content.encode())
    curves = {
        phrase("training"): points(records, "loss"),
        phrase("evaluation"): points(records, "eval_loss"),
    }
    with fonts():
        figure = draw(curves, name, _UNITS[stage])
        save(figure, directory / f"{_NAME}.png")


def points(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    """Return the steps and values of one figure."""
    return [(int(r["step"]), float(r[name])) for r in records if name in r]


def draw(curves: Mapping[str, Points], name: str, unit: str) -> Figure:
    """Draw curves: each as it is, pale, with its smoothed line if it is long."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (what, curve) in enumerate((n, c) for n, c in curves.items() if c):
        steps, losses = zip(*curve, strict=True)
        colour, long, shown = f"C{number}", len(curve) > _LONG, label(what)
        mark = "" if long else "o"
        axes.plot(steps, losses, mark + "-", color=colour, alpha=0.3 if long else 1, label=shown)
        if long:
            smooth = f"{shown}, {label(_SMOOTHED)}"
            axes.plot(*smoothed(curve), color=colour, label=smooth)
    axes.set_title(f"{label(_TITLE)}: {readable(name)}", fontsize=10, wrap=True)
    axes.set_xlabel(label(_STEPS))
    axes.set_ylabel(label(unit))
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return figure


def smoothed(curve: Points) -> tuple[list[float], list[float]]:
    """Smooth a curve by local linear regression, with Gaussian weights on both sides.

    Unlike a moving average it neither lags behind a slope nor is drawn to the first value.

    Returns:
        Steps and values, at most 400 of them.
    """
    import numpy as np

    steps, losses = (np.array(column, float) for column in zip(*curve, strict=True))
    width = (steps[-1] - steps[0]) * _WIDTH
    drawn = np.linspace(steps[0], steps[-1], min(_DRAWN, len(steps)))
    values = []
    for step in drawn:
        weights = np.exp(-0.5 * ((steps - step) / width) ** 2)
        weights /= weights.sum()
        centre, mean = weights @ steps, weights @ losses
        slope = weights @ ((steps - centre) * (losses - mean)) / (weights @ (steps - centre) ** 2)
        values.append(float(mean + slope * (step - centre)))
    return drawn.tolist(), values
