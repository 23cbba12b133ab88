"""Rotary position embedding of Baichuan-7B (Su et al. 2021, arXiv 2104.09864); knows tensors only.

Rotate-half layout: column c of the first half of a head pairs with column c of the second half.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Give cos and sin, float32 [batch, positions, head_dim / 2], for int positions [batch, n].

    Args:
        base: of the wavelengths, which go from 2 pi to almost 2 pi base positions.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angles = positions[..., None].float() * (1.0 / base**exponent)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [batch, heads, positions, head_dim] in float32; the result has the dtype of x."""
    cos, sin = (angle[:, None] for angle in angles)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
