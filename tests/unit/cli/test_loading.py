"""What a person sees while a model is loading."""

import sys

import pytest
import torch
from transformers.utils import logging

from baichuan.checkpoint.load import DEMO
from baichuan.cli.loading import load_model

HINT = "This processor is slow in bfloat16"


@pytest.mark.parametrize(
    ("capability", "where", "hinted"),
    [
        ("AVX2", {"dtype": "bfloat16"}, True),
        ("AVX512", {"dtype": "bfloat16"}, False),
        ("AVX2", {"dtype": "float32"}, False),
        ("AVX2", {"dtype": "bfloat16", "bits": 4}, False),
    ],
)
def test_slow_bfloat16_is_told_where_something_is_faster(
    capability, where, hinted, monkeypatch, capsys
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_model(str(DEMO), **where)
    assert (HINT in " ".join(capsys.readouterr().err.split())) is hinted


def test_nobody_watching_sees_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    load_model(str(DEMO), dtype="bfloat16")
    assert HINT not in capsys.readouterr().err


@pytest.mark.parametrize("where", [{}, {"bits": 8}, {"dtype": "bfloat16"}])
def test_one_bar_at_most_and_it_is_ours(where, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logging.enable_progress_bar()  # whatever other tests did
    load_model(str(DEMO), **where)
    shown = capsys.readouterr().err
    assert "Loading weights" not in shown
    assert ("int8" in shown) == ("bits" in where)
    assert logging.is_progress_bar_enabled()  # downloads show theirs
