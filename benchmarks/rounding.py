"""How much each way of rounding loses for its stored bits: the figures behind quant/rounding.py.

    python benchmarks/rounding.py

Root of the mean squared error over that of the weight, for random normal weights and for the demo
model's. Writes results/rounding.json.
"""

from __future__ import annotations

from typing import Any

import machine
import torch
from safetensors.torch import load_file
from torch import Tensor

from baichuan.checkpoint.load import DEMO
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.scheme import Scheme

_GROUPS = (32, 64, 128)
_SHARES = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


def main() -> None:
    """Measure symmetric rounding as it ships, plain rounding, and rounding with a zero point."""
    torch.manual_seed(0)
    demo = load_file(DEMO / "model.safetensors")
    weights = {
        "normal": torch.randn(512, 5120) * 0.02,
        "demo gate_proj": demo["model.layers.1.mlp.gate_proj.weight"].float(),
        "demo W_pack": demo["model.layers.2.self_attn.W_pack.weight"].float(),
    }
    rows = [row for name, weight in weights.items() for row in _rows(name, weight)]
    machine.save("rounding", {"rows": rows})


def _rows(name: str, weight: Tensor) -> list[dict[str, Any]]:
    schemes = [Scheme(8, None), *(Scheme(8, g) for g in _GROUPS), *(Scheme(4, g) for g in _GROUPS)]
    rows = []
    for scheme in schemes:
        ours = QuantizedLinear.from_weight(weight, scheme).dequantize()
        bits = scheme.stored_bits(weight.shape[1])
        rows.append(_row(name, f"int{scheme.bits}", scheme.group_size, bits, weight, ours))
    for group in _GROUPS:
        plain, zero = _plain(weight, group), _with_zero_point(weight, group)
        rows.append(_row(name, "int4 plain", group, 4 + 16 / group, weight, plain))
        rows.append(_row(name, "int4 + 4-bit zero", group, 4 + 20 / group, weight, zero))
    return rows


def _row(
    name: str, way: str, group: int | None, bits: float, weight: Tensor, rounded: Tensor
) -> dict[str, Any]:
    error = float((rounded - weight).norm() / weight.norm())
    return {"weight": name, "way": way, "group": group, "bits": bits, "error": round(error, 5)}


def _plain(weight: Tensor, group: int) -> Tensor:
    """Divide the largest magnitude by 7 and round."""
    x = weight.view(-1, group)
    scale = (x.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
    return ((x / scale).round().clamp(-8, 7) * scale).view_as(weight)


def _with_zero_point(weight: Tensor, group: int) -> Tensor:
    """Round to 16 levels over the best of several shares of the group's range, off zero."""
    x = weight.view(-1, group)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    best, least = torch.zeros_like(x), torch.full_like(low, float("inf"))
    for share in _SHARES:
        scale = ((high - low) * share / 15).bfloat16().float()
        zero = (7.5 - (low + high) / 2 / scale).round().clamp(0, 15)
        rounded = (((x / scale) + zero).round().clamp(0, 15) - zero) * scale
        error = (rounded - x).square().sum(-1, keepdim=True)
        best = torch.where(error < least, rounded, best)
        least = torch.minimum(least, error)
    return best.view_as(weight)


if __name__ == "__main__":
    main()
