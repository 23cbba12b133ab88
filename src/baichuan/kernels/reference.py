"""The kernels in plain torch: the spec, the fallback, and what native code is tested against.

Arithmetic of a linear layer: each row of activations is rounded to int8, one float32 scale per
group of columns; within a group products are summed exactly; groups are added in float32, in order.
NaN or infinity anywhere in a row makes all of that row's results NaN, and no other row's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baichuan.kernels.layout import PackedMatrix, unpack

#: A group of activations whose magnitudes are all below counts as zero: 127 / 1e-38 is infinite.
_LEAST = 1e-30


def round_activations(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Round x float32 [rows, columns]: int8 [rows, groups, group_size], scales [rows, groups].

    Ties go to the even code. A group that holds NaN or infinity has codes 0 and scale NaN.
    """
    groups = -(-x.shape[1] // group_size)
    x = F.pad(x, (0, -x.shape[1] % group_size)).view(len(x), groups, group_size)
    most = x.abs().amax(-1)
    usable = (most >= _LEAST) & most.isfinite()
    # Not `127.0 / most`, which torch computes as 127 times the rounded reciprocal.
    inverse = torch.where(usable, torch.tensor(127.0).to(most) / most, 0.0)
    scales = torch.where(usable, most / 127.0, torch.where(most < _LEAST, 0.0, torch.nan))
    codes = (torch.where(usable[..., None], x, 0.0) * inverse[..., None]).round().to(torch.int8)
    return codes, scales


def linear(x: Tensor, weight: PackedMatrix) -> Tensor:
    """Multiply x float32 [rows, columns] by weight [outputs, columns] transposed, in float32."""
    codes, scales = round_activations(x, weight.group_size)
    weight_codes, weight_scales = unpack(weight)
    weight_codes = F.pad(weight_codes, (0, -weight.columns % weight.group_size))
    y = x.new_zeros((len(x), weight.rows))
    for group, columns in enumerate(torch.split(weight_codes, weight.group_size, dim=1)):
        # Exact: sums of 256 products of int8 stay below 2^24, up to which float32 holds integers.
        total = codes[:, group].float() @ columns.float().T
        scale = weight_scales[:, group if weight_scales.shape[1] > 1 else 0].float()
        y += total * (scale * scales[:, group, None])
    return y


def silu(x: Tensor) -> Tensor:
    """Give x / (1 + e^-x) of x float32, with the arithmetic of the native code.

    torch's own exponential differs in the last bit between places in a tensor (those that fill a
    vector, and the rest), so that a row's result would depend on its batch.
    """
    y = (-x).clamp(-87.0, 88.0)
    n = (y * 1.44269504).round()
    r = (y - n * 0.693359375) + n * 2.12194440e-4
    p = torch.full_like(x, 1.98756915e-4)
    for term in (1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 5.00000012e-1):
        p = p * r + term
    power = (n.to(torch.int32) + 127 << 23).view(torch.float32)
    # From -200 on, silu is nothing; the exponential, which ends at e^88, would leave a rest.
    vanishes = (x < -200.0) & x.isfinite()
    return torch.where(vanishes, -0.0, x / (1.0 + (p * r * r + r + 1.0) * power))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of x float32 and multiply by `weight`, in float32."""
    mean = x.square().mean(-1, keepdim=True)
    return x * (torch.rsqrt(mean + eps) + mean * 0.0) * weight.float()  # NaN, if it overflows


def attend(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None) -> Tensor:
    """Attend from the newest position: query [heads, width], key and value [heads, keys, width]."""
    scores = torch.einsum("hd,hkd->hk", query.float(), key.float()) / query.shape[1] ** 0.5
    if slopes is not None:
        scores = scores + slopes[:, None] * torch.arange(1 - key.shape[1], 1, device=key.device)
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), value.float()).to(query.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [sequences, heads, width] by the angles of each sequence [sequences, width / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
