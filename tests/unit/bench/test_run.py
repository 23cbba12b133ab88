"""Workers: what they tell, how they end, and that none is left."""

import os
import subprocess

import psutil
import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.bench import run as run_module
from baichuan.bench.job import Job
from baichuan.bench.memory import need
from baichuan.bench.run import run
from baichuan.errors import BaichuanError

SMALL = Job(prompt=6, tokens=4, repeats=2, device="cpu", threads=1)


def silent(*what) -> None:
    pass


def workers() -> list[psutil.Process]:
    mine = psutil.Process().children()
    return [child for child in mine if "baichuan.bench.worker" in child.cmdline()]


def test_a_worker_measures_and_tells():
    told = []
    (row,) = run(SMALL, ["int8"], lambda *what: told.append(what))
    figures = row.figures
    assert row.precision == "int8"
    assert figures is not None, row.failure
    assert figures.weight_bytes == row.need.weights
    assert figures.threads == 1
    assert figures.dtype == "float32"
    assert len(figures.prefill_seconds) == len(figures.decode_seconds) == 2
    # Python and torch alone take more than 100 MB; this process is another one.
    assert figures.peak_bytes > 100_000_000
    assert figures.positions is not None
    stages = list(dict.fromkeys(stage for _, stage, _, _ in told))
    assert stages == ["load", "warm-up", "answer", "compare-prompts", "compare-answers"]
    assert not workers()


def test_what_does_not_fit_is_not_run(monkeypatch):
    monkeypatch.setattr(run_module, "available", lambda device: need(SMALL, "fp32").total - 1)
    monkeypatch.setattr(subprocess, "Popen", None)  # would fail
    (row,) = run(SMALL, ["fp32"], silent)
    assert not row.fits
    assert row.figures is None
    assert row.failure is None


def test_stopping_ends_the_worker():
    class StoppedError(Exception):
        pass

    seen = []

    def stop(*what) -> None:
        seen.extend(workers())
        raise StoppedError

    with pytest.raises(StoppedError):
        list(run(SMALL, ["fp32"], stop))
    assert len(seen) == 1
    assert not seen[0].is_running()


def test_a_killed_worker_is_a_row_that_says_so():
    def kill(*what) -> None:
        for worker in workers():
            worker.kill()

    (row,) = run(SMALL, ["fp32"], kill)
    assert row.fits
    assert row.figures is None
    assert "ended with code -9" in row.failure


def test_a_crash_is_a_row_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "transformers.py").write_text("raise ImportError('nothing here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path)]))
    (row,) = run(SMALL, ["fp32"], silent)
    assert row.figures is None
    assert row.failure == "its process ended with code 1 ImportError: nothing here"


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    model = baichuan.BaichuanForCausalLM(tiny_config())
    model.save_pretrained(tmp_path)
    del model
    with pytest.raises(BaichuanError, match=r"fp32: .*tokenizer\.model"):
        list(run(Job(model=str(tmp_path), device="cpu"), ["fp32"], silent))
    assert torch.get_num_threads() == 1
