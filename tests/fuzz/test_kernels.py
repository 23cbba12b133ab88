"""Kernels with any shape, stride, dtype and value: the reference's result, or a refusal.

In a process of its own, so that a crash is a failure that names its case.
"""

import random
import subprocess
import sys
from pathlib import Path

import torch

from baichuan.kernels import gradients, native, reference
from baichuan.kernels.layout import dequantize, pack
from baichuan.kernels.ops import Norm, linear
from tests.fuzz.harness import run_cases

ROOT = Path(__file__).parents[2]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def strided(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Return the same values in a tensor that is not contiguous, sometimes."""
    if rng.random() < 0.5:
        return tensor
    wide = torch.empty(*tensor.shape[:-1], tensor.shape[-1] * 2, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def matrix(rng: random.Random, columns: int, group: int, bits: int, rows: int):
    least, most = {3: (-4, 4), 4: (-8, 8), 8: (-127, 128)}.get(bits, (-200, 200))
    codes = torch.randint(least, most, (rows, columns))
    groups = rng.choice((1, -(-columns // group) if group else 1))
    dtype = torch.int8 if rng.random() < 0.98 else torch.int32
    return pack(codes.to(dtype), torch.rand(rows, groups) + 0.01, bits, group)


def case(rng: random.Random) -> None:
    torch.manual_seed(rng.randrange(1 << 30))
    columns, rows, count = rng.randint(1, 300), rng.randint(1, 50), rng.choice((0, 1, 2, 5, 33))
    group, bits = rng.choice((32, 64, 128, 256, 0, 16)), rng.choice((3, 4, 8, 8, 5))
    weight = matrix(rng, columns, group, bits, rows)
    dtype = rng.choice(_DTYPES)
    x = torch.randn(count, columns) * 10 ** rng.uniform(-20, 20 if rng.random() < 0.2 else 3)
    if count and rng.random() < 0.2:
        x[rng.randrange(count), rng.randrange(columns)] = rng.choice((torch.inf, torch.nan, 3e38))
    x = strided(x.to(dtype), rng)
    wrong = rng.choice((0,) * 9 + (1,))
    up = matrix(rng, columns, group, bits, rows + wrong) if rng.random() < 0.3 else None
    norm = residual = None
    if rng.random() < 0.3:
        weights = torch.rand(columns + rng.choice((0,) * 9 + (-1, 1))) + 0.5
        norm = Norm(strided(weights.to(rng.choice(_DTYPES)), rng), 1e-6)
    if rng.random() < 0.3:
        residual = strided(torch.randn(count, rows + wrong).to(dtype), rng)
    y = linear(x, weight, up=up, norm=norm, residual=residual)
    assert y.shape == (count, rows)
    assert y.dtype == dtype
    if not count:
        return
    wide = x.float() if norm is None else reference.rms_norm(x.float(), norm.weight, norm.eps)
    expected = reference.linear(wide, weight)
    if up is not None:
        expected = reference.silu(expected) * reference.linear(wide, up)
    if residual is not None:
        expected = expected + residual.float()
    close = {"rtol": 1e-2, "atol": 1e-2 * float(expected.nan_to_num(0, 0, 0).abs().max() or 1)}
    torch.testing.assert_close(y, expected.to(dtype), equal_nan=True, **close)
    start = rng.randrange(-1, 4) * (group or 1)
    part = slice(start, start + rng.randrange(columns + 2))
    taken = gradients.dense(weight, torch.float32, part)
    assert torch.equal(taken, dequantize(weight, torch.float32)[:, part])


def run(count: int) -> None:
    torch.set_num_threads(1)
    run_cases(count, case, name=f"kernels {native.chosen()}")


def test_linear(fuzz_cases):
    # Not multiprocessing's: it runs the main module again, which a page's test may have replaced.
    code = f"from tests.fuzz.test_kernels import run; run({fuzz_cases})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
