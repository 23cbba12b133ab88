"""Finds the compiled kernels and the best instruction set; knows addresses, not what they mean.

The shared library is built from csrc/ when the package is installed, if there is a compiler.
Without it everything runs in plain torch (reference.py). `BAICHUAN_KERNELS` forces one
implementation by its name, `torch` among them.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # before the library, which then shares torch's OpenMP threads
from torch import Tensor

from baichuan.errors import UsageError
from baichuan.language import phrase, translate

#: Plain torch: what runs where the native library is absent.
TORCH = "torch"
#: Native implementations, the best last, and their numbers in csrc/kernels.cpp.
LEVELS = {"generic": 0, "neon": 5, "avx2": 1, "avx2-vnni": 2, "avx512-vnni": 3, "amx": 4}
#: Of activations, norms and caches, and their numbers there.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_VARIABLE = "BAICHUAN_KERNELS"
_NAME = "_native"

_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class LinearCall(ctypes.Structure):
    """`struct Linear` of csrc/kernels.cpp.

    Attributes:
        result: the tensor that it writes to.
        holds: what else must live until it has run.
    """

    result: Tensor
    holds: object

    _fields_ = (
        *((n, _POINTER) for n in ("x", "norm", "codes", "scales", "up_codes", "up_scales")),
        *((n, _POINTER) for n in ("residual", "y")),
        *((n, _INT64) for n in ("rows", "columns", "outputs", "group")),
        *((n, _INT32) for n in ("bits", "scale_groups", "up_bits", "up_scale_groups")),
        *((n, _INT32) for n in ("dtype", "norm_dtype", "level")),
        ("eps", ctypes.c_float),
    )


class AttendCall(ctypes.Structure):
    """`struct Attend` of csrc/kernels.cpp; attributes as those of `LinearCall`."""

    result: Tensor
    holds: object

    _fields_ = (
        *((n, _POINTER) for n in ("query", "key", "value", "out", "blocks", "counts", "slopes")),
        *((n, _POINTER) for n in ("cos", "sin")),
        *((n, _INT64) for n in ("rows", "heads", "width", "block", "layer")),
        *((n, _INT64) for n in ("query_stride", "key_stride", "value_stride")),
        *((n, _INT32) for n in ("dtype", "level")),
    )


class DequantizeCall(ctypes.Structure):
    """`struct Dequantize` of csrc/dequantize.inc."""

    _fields_ = (
        *((n, _POINTER) for n in ("codes", "scales", "y")),
        *((n, _INT64) for n in ("rows", "columns", "first", "count", "group")),
        *((n, _INT32) for n in ("bits", "scale_groups", "dtype")),
    )


class Call(ctypes.Structure):
    """`struct Call` of csrc/kernels.cpp: one of the two."""

    _fields_ = (
        ("linear", ctypes.POINTER(LinearCall)),
        ("attend", ctypes.POINTER(AttendCall)),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the compiled kernels; None where there are none, with one warning."""
    found = [Path(__file__).with_name(_NAME + suffix) for suffix in EXTENSION_SUFFIXES]
    path = next((p for p in found if p.exists()), None)
    reason = phrase("it was not built: no C++ compiler was there when the package was installed")
    if path is not None:
        try:
            return _declared(ctypes.CDLL(str(path)))
        except OSError as error:
            reason = str(error)
    warnings.warn(
        translate(
            "baichuan's native kernels are absent ({reason}); quantized models run in plain torch, "
            "many times slower. Install a C++ compiler (g++ or clang++) and the package again.",
            reason=translate(reason),
        ),
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def run(calls: Sequence[LinearCall | AttendCall]) -> None:
    """Run calls one after the other: each may read what those before it have written.

    The caller has checked them, and holds what their pointers point to.
    """
    entries = (Call * len(calls))()
    for entry, call in zip(entries, calls, strict=True):
        if isinstance(call, LinearCall):
            entry.linear = ctypes.pointer(call)
        else:
            entry.attend = ctypes.pointer(call)
    native = library()
    assert native is not None, "chosen() gives native names only where there is a library"
    native.baichuan_run(entries, len(calls))


def dequantize(call: DequantizeCall) -> None:
    """Write the numbers of a part of a weight; the caller has checked it, as for `run`."""
    native = library()
    assert native is not None, "chosen() gives native names only where there is a library"
    native.baichuan_dequantize(ctypes.byref(call))


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    loaded.baichuan_available.argtypes = [_INT32]
    loaded.baichuan_available.restype = _INT32
    loaded.baichuan_run.argtypes = [ctypes.POINTER(Call), _INT64]
    loaded.baichuan_run.restype = None
    loaded.baichuan_dequantize.argtypes = [ctypes.POINTER(DequantizeCall)]
    loaded.baichuan_dequantize.restype = None
    return loaded


@lru_cache(maxsize=1)
def available() -> tuple[str, ...]:
    """Names of the implementations that this machine runs, the best last."""
    native = library()
    if native is None:
        return (TORCH,)
    return (TORCH, *(name for name, level in LEVELS.items() if native.baichuan_available(level)))


def chosen() -> str:
    """Give the name of the implementation in use.

    Raises:
        UsageError: `BAICHUAN_KERNELS` names none that runs here.
    """
    forced = os.environ.get(_VARIABLE)
    if not forced:
        return available()[-1]
    if forced not in available():
        raise UsageError(
            "{variable} is {given!r}; this machine runs {names}. "
            "Unset it to have the best one chosen.",
            variable=_VARIABLE,
            given=forced,
            names=", ".join(available()),
        )
    return forced


def bfloat16_is_slow() -> bool:
    """Say whether torch's own products are slow in bfloat16, as on x86 without AVX512.

    Measured on a Zen 3: a sixth of float32's speed. Quantized layers have kernels of ours, which
    are not slowed down.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def level() -> int:
    """Give the number of the native implementation in use, for a call."""
    return LEVELS[chosen()]
