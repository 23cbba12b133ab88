"""The loss curve of a run, as training_loss.json and .png. English: fonts may lack Chinese."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baichuan.errors import UsageError
from baichuan.files import write_at_one_stroke

_NAME = "training_loss"
#: Share of the past in each point of the smoothed line.
_KEPT = 0.9

#: (step, loss) in the order of the steps.
Points = list[tuple[int, float]]


def require_picture() -> None:
    """Check that a picture can be drawn, before hours of training.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot_loss draws with matplotlib, which is not installed. "
            "Install it with: pip install 'baichuan-lm[train]'"
        )


def write_curve(records: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """Write the losses of a Trainer's log_history as JSON and as a picture."""
    content = json.dumps({"records": list(records)}, indent=1)
    write_at_one_stroke(directory / f"{_NAME}.json", content.encode())
    drawn = draw({"training": points(records, "loss"), "evaluation": points(records, "eval_loss")})
    write_at_one_stroke(directory / f"{_NAME}.png", drawn)


def points(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    """Give the steps and values of one figure."""
    return [(int(r["step"]), float(r[name])) for r in records if name in r]


def draw(curves: Mapping[str, Points]) -> bytes:
    """Draw curves as a PNG: each as it is, pale, with its smoothed line if it is long."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, curve) in enumerate((n, c) for n, c in curves.items() if c):
        steps, losses = zip(*curve, strict=True)
        colour, long = f"C{number}", len(curve) > 20
        mark = "" if long else "o"
        axes.plot(steps, losses, mark + "-", color=colour, alpha=0.3 if long else 1, label=name)
        if long:
            axes.plot(steps, smoothed(losses), color=colour, label=f"{name}, smoothed")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """Average with what came before, exponentially and without the bias to the first value."""
    total = weight = 0.0
    means = []
    for value in values:
        total = _KEPT * total + (1 - _KEPT) * value
        weight = _KEPT * weight + (1 - _KEPT)
        means.append(total / weight)
    return means
