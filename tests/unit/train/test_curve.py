"""The loss curve: which points are drawn, and what is written."""

import json

import numpy as np
import pytest

from baichuan.picture import fonts, save
from baichuan.train.curve import draw, points, smoothed, write_curve

RECORDS = [
    {"step": 1, "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "eval_loss": 2.5},
    {"step": 2, "loss": 2.0},
    {"step": 2, "train_runtime": 1.0},
]
PNG = b"\x89PNG"
UNIT = "loss (nats per token)"


def test_points_are_those_of_one_figure():
    assert points(RECORDS, "loss") == [(1, 3.0), (2, 2.0)]
    assert points(RECORDS, "eval_loss") == [(2, 2.5)]


def test_smoothing_keeps_a_line_from_its_first_point_to_its_last():
    steps, values = smoothed([(step, 5 - 0.01 * step) for step in range(1, 201)])
    assert values == pytest.approx([5 - 0.01 * step for step in steps])
    assert (steps[0], steps[-1]) == (1, 200)


def test_smoothing_takes_noise_away_without_a_lag():
    noise = np.random.default_rng(0).normal(0, 0.1, 300)
    true = [1 + 2 * np.exp(-step / 40) for step in range(300)]
    steps, values = smoothed([(i, t + n) for i, (t, n) in enumerate(zip(true, noise, strict=True))])
    errors = np.array(values) - [1 + 2 * np.exp(-step / 40) for step in steps]
    assert np.abs(errors).max() < 0.15  # an average over the past is 1 too high at the start
    assert np.abs(errors[50:]).mean() < 0.03
    raised = smoothed([(i, t + 9 * (i == 0)) for i, t in enumerate(true)])[1][0]
    assert raised < true[0] + 5  # one bad first value is not where the line begins


def test_a_long_curve_has_few_points():
    assert len(smoothed([(step, 1 / step) for step in range(1, 5000)])[0]) == 400


def test_both_files_are_written(tmp_path):
    write_curve(RECORDS, tmp_path, "模型, sft", "dpo")
    assert json.loads((tmp_path / "training_loss.json").read_text())["records"] == RECORDS
    assert (tmp_path / "training_loss.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_title_axes_and_legend(monkeypatch, tmp_path, tongue):
    """In characters that the fonts have: a missing glyph is a warning, which is an error here."""
    monkeypatch.setenv("BAICHUAN_LANG", tongue)
    long = [(step, 1 / step) for step in range(1, 50)]
    with fonts():
        figure = draw({"training": long, "evaluation": [(49, 0.1)]}, "我的é, sft", UNIT)
        save(figure, tmp_path / "loss.png")
    (axes,) = figure.axes
    assert "sft" in axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
    assert len(axes.get_legend().get_texts()) == 3
    if tongue == "en":
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", UNIT)


def test_nothing_at_all_can_be_drawn(tmp_path):
    save(draw({}, "", UNIT), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
