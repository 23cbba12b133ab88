"""Draws docs/speed.png: what compare.py measured, engine beside engine.

    python benchmarks/speed.py

A panel for each results/compare_intBITS_FIGURE.json that is there: medians as bars, quartiles as
whiskers. Needs `matplotlib`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from machine import RESULTS

matplotlib.use("Agg")
from matplotlib import pyplot

PICTURE = Path(__file__).parents[1] / "docs" / "speed.png"
_FIGURES = ("prefill", "decode", "batch", "memory", "cold")
_OURS, _OTHERS = "#d62728", "#1f77b4"
_GGUF = {4: "Q4_0", 8: "Q8_0"}

#: One bar: its label, its lower quartile, median and upper quartile, and whether it is ours.
Bar = tuple[str, tuple[float, float, float], bool]


def main() -> None:
    """Draw all that was measured."""
    measured = [
        (bits, figure, json.loads(file.read_text("utf-8")))
        for bits in _GGUF
        for figure in _FIGURES
        if (file := RESULTS / f"compare_int{bits}_{figure}.json").is_file()
    ]
    bars = [list(_bars(bits, figure, content)) for bits, figure, content in measured]
    chart, panels = pyplot.subplots(
        len(measured),
        figsize=(9, sum(0.9 + 0.32 * len(some) for some in bars)),
        height_ratios=[1.5 + len(some) for some in bars],
        layout="constrained",
        squeeze=False,
    )
    for panel, some, (bits, figure, content) in zip(panels[:, 0], bars, measured, strict=True):
        _draw(panel, some)
        panel.set_title(f"int{bits}: {content['what']}", loc="left", fontsize=10)
        panel.set_xlabel(_unit(figure), fontsize=9)
        if figure == "decode":
            _draw_wall(panel, content)
    machine = measured[0][2]["machine"]
    chart.suptitle(
        f"Baichuan-13B's geometry, random weights; {machine['cpu']}, {machine['threads']} threads",
        fontsize=10,
    )
    chart.savefig(PICTURE, dpi=100)


def _unit(figure: str) -> str:
    units = {
        "memory": "GB at the peak, mapped pages included; less is better",
        "cold": "seconds; less is better",
    }
    return units.get(figure, "tokens per second; more is better")


def _bars(bits: int, figure: str, content: dict[str, Any]) -> Iterator[Bar]:
    """Give what a panel shows, the better of llama.cpp's two kinds of attention alone."""
    if figure == "memory":
        spreads = {name: (content[name]["peak_gb"],) * 3 for name in ("baichuan", "llama")}
    else:
        table = content["seconds" if figure == "cold" else "tokens_per_second"]
        quartiles = ("lower_quartile", "median", "upper_quartile")
        spreads = {name: tuple(spread[q] for q in quartiles) for name, spread in table.items()}
    attentions = [name for name in spreads if name.startswith("llama_fa")]
    best = max(attentions, key=lambda name: spreads[name][1], default=None)
    for name, spread in spreads.items():
        if name not in attentions or name == best:
            yield _label(name, bits, content), spread, name in ("baichuan", "one", "many")


def _label(name: str, bits: int, content: dict[str, Any]) -> str:
    """Name an engine, or what ours did."""
    if name.startswith("llama"):
        return f"llama.cpp {_GGUF[bits]}"
    if name == "openvino":
        return f"OpenVINO i4 ({content['openvino_is'].partition(',')[0]})"
    return {"baichuan": "baichuan", "one": "one sequence", "many": "all together"}[name]


def _draw(panel: Any, bars: list[Bar]) -> None:
    for place, (label, (low, median, high), ours) in enumerate(reversed(bars)):
        whiskers = [[median - low], [high - median]] if low < high else None
        colour = _OURS if ours else _OTHERS
        panel.barh(place, median, 0.7, xerr=whiskers, color=colour, alpha=0.85, capsize=3)
        panel.annotate(
            f"{median:.3g}", (high, place), (6, 0), textcoords="offset points", va="center"
        )
        panel.text(0, place, f"{label}  ", ha="right", va="center", fontsize=9)
    panel.set_yticks([])
    panel.set_ylim(-0.6, len(bars) - 0.4)
    panel.margins(x=0.12)
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_wall(panel: Any, content: dict[str, Any]) -> None:
    """Mark the speed at which our weights and cache would come at the memory's full bandwidth."""
    speed = content["tokens_per_second"]["baichuan"]["median"]
    wall = speed / content["share_of_read_bandwidth"]["median"]
    panel.axvline(wall, color="grey", linestyle="--", linewidth=1)
    panel.annotate(
        "memory's limit",
        (wall, panel.get_ylim()[0]),
        (-4, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="grey",
    )


if __name__ == "__main__":
    main()
