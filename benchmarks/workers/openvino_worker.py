"""Runs OpenVINO for benchmarks/compare.py: the linear layers of the 13B alone, int4 by groups.

OpenVINO has no Baichuan network, so this is less than a whole model: no attention, no norms, no
head. The layers stand one behind the other with the gate between, at the network's true shapes, so
memory and arithmetic are those of as many of its layers. Weights are random.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import serving

#: The spread of uniform codes from -7 to 7.
_CODES_SPREAD = 4.32
#: The spread of silu(g) * u for g and u of spread 1.
_GATED_SPREAD = 0.6


class Stack:
    """A compiled stack of layers, each 4 h^2 + 3 h i weights in i4 with a scale per group."""

    def __init__(
        self, hidden: int, inner: int, layers: int, group: int, threads: int | None
    ) -> None:
        self.hidden, self.inner, self.layers, self.group = hidden, inner, layers, group
        self.random = np.random.default_rng(0)
        self.kept: list[Any] = []  # the constants are these arrays' memory
        begin = time.perf_counter()
        x = source = ops.parameter([-1, hidden], np.float32, "x")
        for _ in range(layers):
            x = self._layer(x)
        settings = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        model = ov.Model([ops.result(x)], [source], "stack")
        self.compiled = ov.Core().compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.load_seconds = time.perf_counter() - begin

    def _layer(self, x: Any) -> Any:
        packed = self._linear(x, self.hidden, 3 * self.hidden, 1.0)
        value = ops.split(packed, ops.constant(1, np.int64), 3).output(2)
        x = self._linear(value, self.hidden, self.hidden, 1.0)
        gate = ops.swish(self._linear(x, self.hidden, self.inner, 1.0))
        up = self._linear(x, self.hidden, self.inner, 1.0)
        return self._linear(ops.multiply(gate, up), self.inner, self.hidden, _GATED_SPREAD)

    def _linear(self, x: Any, columns: int, rows: int, spread: float) -> Any:
        """Multiply an input of this spread to an output of spread 1, by random i4 codes."""
        group = math.gcd(self.group, columns)  # 128 at the true shapes
        shape = [rows, columns // group, group]
        # Without -8, which would give every sum the same offset, and that grows layer by layer.
        low, high = self.random.integers(-7, 8, (2, rows * columns // 2), dtype=np.int8)
        packed = ((low & 15) | (high << 4)).view(np.uint8)
        self.kept.append(packed)
        codes = ops.constant(ov.Tensor(packed, ov.Shape(shape), ov.Type.i4))
        scale = 1 / (spread * _CODES_SPREAD * columns**0.5)
        scales = self.random.uniform(0.9 * scale, 1.1 * scale, (*shape[:2], 1)).astype(np.float16)
        wide = ops.multiply(ops.convert(codes, np.float16), ops.constant(scales))
        weight = ops.reshape(wide, ops.constant([rows, columns], np.int64), False)
        return ops.matmul(x, ops.convert(weight, np.float32), False, True)

    def info(self) -> dict[str, Any]:
        """Name the engine and how much of the network this is."""
        names = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        return {
            "engine": f"OpenVINO {ov.__version__}, i4 by groups of {self.group}, linears alone",
            "settings": {name: str(self.compiled.get_property(name)) for name in names},
            "threads": str(self.compiled.get_property("INFERENCE_NUM_THREADS")),
            "layers": self.layers,
            "load_seconds": self.load_seconds,
        }

    def prefill(self, tokens: int) -> dict[str, float]:
        """Time one pass of that many rows through the layers there are."""
        x = np.random.default_rng(1).standard_normal((tokens, self.hidden), dtype=np.float32)
        begin = time.perf_counter()
        result = self.request.infer({0: x})[0]
        seconds = time.perf_counter() - begin
        if not np.isfinite(result).all() or not 0.01 < result.std() < 100:
            raise SystemExit(f"The stack's output has spread {result.std()}: not a fair input.")
        return {"seconds": seconds}


def main() -> None:
    """Build the stack and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=5120)
    parser.add_argument("--inner", type=int, default=13696)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    stack = Stack(
        arguments.hidden, arguments.inner, arguments.layers, arguments.group, arguments.threads
    )
    serving.serve(
        {
            "info": stack.info,
            "prefill": stack.prefill,
            "memory": serving.memory,
        }
    )


if __name__ == "__main__":
    main()
