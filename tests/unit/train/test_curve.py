"""The loss curve: which points are drawn, and what is written."""

import json

import pytest

from baichuan.train.curve import draw, points, smoothed, write_curve

RECORDS = [
    {"step": 1, "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "eval_loss": 2.5},
    {"step": 2, "loss": 2.0},
    {"step": 2, "train_runtime": 1.0},
]
PNG = b"\x89PNG"


def test_points_are_those_of_one_figure():
    assert points(RECORDS, "loss") == [(1, 3.0), (2, 2.0)]
    assert points(RECORDS, "eval_loss") == [(2, 2.5)]


def test_smoothing_begins_at_the_first_value_and_keeps_a_constant():
    assert smoothed([5.0, 5.0, 5.0]) == pytest.approx([5, 5, 5])
    assert smoothed([1.0, 0.0])[0] == 1
    assert 0 < smoothed([1.0, 0.0])[1] < 0.5  # 0.9 of the past: 0.09 / 0.19


def test_both_files_are_written(tmp_path):
    write_curve(RECORDS, tmp_path)
    assert json.loads((tmp_path / "training_loss.json").read_text())["records"] == RECORDS
    assert (tmp_path / "training_loss.png").read_bytes().startswith(PNG)


def test_a_long_curve_and_none_at_all_can_be_drawn():
    long = [(step, 1 / step) for step in range(1, 50)]
    assert draw({"training": long, "evaluation": []}).startswith(PNG)
    assert draw({}).startswith(PNG)
