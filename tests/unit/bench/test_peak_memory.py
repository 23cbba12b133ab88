"""What is needed, what is free, what was taken."""

import sys

import pytest
import torch

from baichuan.bench.job import Job
from baichuan.bench.memory import Peak, available, gpu_peak_bytes, need

MEGABYTE = 1_000_000


def test_need_of_the_13b():
    alone = need(Job(random="13b", prompt=48, tokens=2000, rope=False), "bf16")
    assert alone.cache == 2048 * 2 * 40 * 5120 * 2
    assert alone.weights == 26_529_802_240
    assert alone.total > alone.weights + alone.cache
    both = need(Job(random="13b", prompt=48, tokens=2000), "bf16")
    assert both.total == alone.total + alone.cache


def test_the_cache_has_the_activations_dtype():
    job = Job(random="13b", layers=1)
    assert need(job, "fp32").cache == 2 * need(job, "bf16").cache
    assert need(job, "int4").cache == need(job, "bf16").cache
    assert need(Job(), "int4").cache == need(Job(), "fp32").cache  # the demo model is in float32


def test_free_memory():
    assert MEGABYTE < available("cpu") < 2**50
    assert gpu_peak_bytes("cpu") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the peak back")
def test_the_latest_part_has_a_peak_of_its_own():
    peak = Peak()
    held = torch.ones(300 * MEGABYTE // 4)
    before = peak.bytes
    del held
    peak.begin_part()
    assert peak.part_bytes is not None
    assert peak.part_bytes < before - 200 * MEGABYTE
    assert peak.bytes > before - MEGABYTE  # Linux counts pages in batches
    held = torch.ones(100 * MEGABYTE // 4)
    assert peak.part_bytes < peak.bytes
    del held


def test_a_system_that_cannot_set_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr("baichuan.bench.memory._CLEAR", tmp_path / "no" / "file")
    peak = Peak()
    peak.begin_part()
    assert peak.part_bytes is None
    assert peak.bytes > MEGABYTE
