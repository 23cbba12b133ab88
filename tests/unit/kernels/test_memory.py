"""Weights moved into large pages are the same weights, and are held once."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from baichuan.kernels.memory import moved_to_huge_pages

SIZE = 64_000_000


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 5_000_001])
def test_the_content_is_the_same(count):
    content = torch.randint(0, 256, (count,), dtype=torch.uint8)
    moved = moved_to_huge_pages(content.clone())
    assert torch.equal(moved, content)
    assert moved.is_contiguous() and moved.dtype == torch.uint8


def test_neighbours_in_memory_are_untouched():
    whole = torch.randint(0, 256, (3, 1_000_001), dtype=torch.uint8)
    before = whole.clone()
    moved = moved_to_huge_pages(whole[1])
    assert torch.equal(moved, before[1])
    assert torch.equal(whole[0], before[0]) and torch.equal(whole[2], before[2])


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_mapped_file_is_not_held_twice(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(SIZE, dtype=torch.uint8)}, path)
    code = f"""
import torch
from safetensors import safe_open
from baichuan.kernels.memory import moved_to_huge_pages
int(moved_to_huge_pages(torch.ones(5_000_000, dtype=torch.uint8)).sum())  # reads torch's code
def held():
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith(("RssAnon", "RssFile"))) * 1024
with safe_open({str(path)!r}, framework="pt") as file:
    before = held()
    moved = moved_to_huge_pages(file.get_tensor("a"))
    assert int(moved.sum()) == {SIZE}
    print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.2 * SIZE
