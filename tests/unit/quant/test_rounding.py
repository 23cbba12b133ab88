"""Rounding of weights: bounds that hold for every weight, and choices that must not lose."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from baichuan.errors import UsageError
from baichuan.kernels.layout import dequantize, pack
from baichuan.quant import rounding
from baichuan.quant.rounding import round_weight
from baichuan.quant.scheme import Scheme

SCHEMES = st.builds(Scheme, st.sampled_from([8, 4, 3]), st.sampled_from([None, 32, 64, 128, 256]))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def restored(weight, scheme):
    """Give the float32 matrix that the codes of a weight stand for."""
    return dequantize(pack(*round_weight(weight, scheme), scheme.bits, scheme.columns_per_group))


def by_groups(weight, scheme):
    """Give float64 [rows, groups, columns]."""
    size = scheme.group_size or weight.shape[1]
    padded = F.pad(weight.double(), (0, -weight.shape[1] % size))
    return padded.view(len(weight), -1, size)


@st.composite
def weights(draw):
    torch.manual_seed(draw(st.integers(0, 2**20)))
    weight = torch.randn(draw(st.integers(1, 40)), draw(st.integers(1, 300)))
    weight *= 10.0 ** draw(st.integers(-4, 1))
    if draw(st.booleans()):  # one number that stands out, and a row of nothing
        weight[0, -1] *= 1000
        weight[-1] = 0
    return weight.to(draw(st.sampled_from(DTYPES)))


@given(weights(), SCHEMES)
def test_codes_and_scales_are_in_range_and_errors_bounded(weight, scheme):
    codes, scales = round_weight(weight, scheme)
    size = scheme.group_size or weight.shape[1]
    assert codes.dtype == torch.int8 and codes.shape == weight.shape
    assert scales.dtype == torch.bfloat16
    assert scales.shape == (len(weight), 1 if scheme.per_row else -(-weight.shape[1] // size))
    assert scales.isfinite().all()
    assert codes.max() <= 2 ** (scheme.bits - 1) - 1
    half = 2 ** (scheme.bits - 1)
    assert codes.min() >= (-127 if scheme.bits == 8 else -half)
    error = by_groups(restored(weight, scheme).double() - weight.double(), scheme).abs().amax(-1)
    most = by_groups(weight, scheme).abs().amax(-1)
    if scheme.bits == 8:  # half a step, and what the scale loses in bfloat16
        assert (error <= most / 127 / 2 * 1.005).all()
    else:  # never worse than dividing by 8 or 4: half a step, or a whole one on the short side
        assert (error.square() <= size * (most / half).square() * 1.01).all()


def test_the_error_of_int8_is_far_below_that_of_int4():
    weight = torch.randn(64, 512)

    def loss(*scheme):
        return float((restored(weight, Scheme(*scheme)) - weight).square().mean())

    assert loss(8, 128) < loss(8, None) < loss(4, 32) / 100
    assert loss(4, 32) < loss(4, 64) < loss(4, 128) < loss(4, 256) < loss(4, None)
    assert loss(4, 32) < loss(3, 32) / 3 < loss(3, 64) / 3 < 0.25**2 / 3
    assert loss(4, 128) < 0.12**2  # of normal numbers: at 4.125 bits a weight


@given(weights(), st.sampled_from([32, 128]), st.floats(0.3, 3))
def test_no_int4_group_is_worse_than_with_a_divisor_of_8(weight, size, stretch):
    scheme = Scheme(4, size)
    groups = by_groups(weight, scheme)
    most = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (most / -8).bfloat16().double()
    codes = (groups / torch.where(scales == 0, 1.0, scales)).round().clamp(-8, 7)
    plain = (codes * scales - groups).square().sum(-1)
    ours = by_groups(restored(weight, scheme).double() - weight.double(), scheme)
    assert (ours.square().sum(-1) <= plain * 1.0001 + 1e-12 * most[..., 0].square()).all()


@pytest.mark.parametrize("scheme", [Scheme(8, None), Scheme(8, 64), Scheme(4, 32)], ids=str)
@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-37, 1e-34, 1e-25, 1e20, 1e30])
def test_very_small_and_very_large_weights(scheme, size):
    weight = torch.randn(5, 70).clamp(-3, 3) * size
    codes, scales = round_weight(weight, scheme)
    again = restored(weight, scheme)
    assert again.isfinite().all() and scales.isfinite().all()
    if size > 1e-33:  # the same codes as at any other size; a power of two changes no digit
        factor = 2.0 ** -round(torch.tensor(size).log2().item())
        assert torch.equal(round_weight(weight * factor, scheme)[0], codes)
    else:
        assert (again - weight).abs().max() <= 1.3e-34


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_refused_and_the_largest_number_is_not(bits, bad):
    weight = torch.randn(5, 70)
    weight[:, 0], weight[:, 1] = 3e38, -3e38
    assert restored(weight, Scheme(bits, 32)).isfinite().all()
    weight[3, 69] = bad
    with pytest.raises(UsageError, match="NaN or infinity"):
        round_weight(weight, Scheme(bits, 32))


@given(weights(), SCHEMES)
def test_the_parts_that_are_rounded_at_a_time_do_not_matter(weight, scheme):
    whole = round_weight(weight, scheme)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "_CPU_PART", 700)
        parts = round_weight(weight, scheme)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_of_equal_magnitudes_the_first_gives_the_sign():
    for first in (4.0, -4.0):
        weight = torch.tensor([[1.0, first, 0.3, -first] + [0.0] * 28])
        _, scales = round_weight(weight, Scheme(4, 32))
        assert (scales < 0) == (first > 0)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_zeros_stay_zeros(bits):
    codes, scales = round_weight(torch.zeros(3, 40), Scheme(bits, 32))
    assert not codes.any() and not scales.any()


def test_one_outlier_costs_its_group_alone():
    weight = torch.randn(1, 128)
    with_outlier = weight.clone()
    with_outlier[0, 5] = 100
    a, b = (restored(w, Scheme(4, 32)) for w in (weight, with_outlier))
    assert torch.equal(a[:, 32:], b[:, 32:])
    assert b[0, 5] == pytest.approx(100, rel=0.01)


def test_what_lies_on_the_grid_is_kept():
    grid = torch.randint(-7, 8, (20, 128)).float()
    grid[:, ::32] = -8  # each group has its extreme
    assert torch.equal(restored(grid * 0.25, Scheme(4, 32)), grid * 0.25)
    grid = torch.randint(-126, 127, (20, 128)).float()
    grid[:, 0] = 127
    assert torch.equal(restored(grid * 0.25, Scheme(8, None)), grid * 0.25)


def test_rows_do_not_depend_on_each_other():
    weight = torch.randn(1030, 64)  # more than are rounded at a time
    for scheme in (Scheme(8, None), Scheme(4, 32)):
        codes, scales = round_weight(weight, scheme)
        for rows in (slice(0, 3), slice(1020, 1030)):
            part = round_weight(weight[rows], scheme)
            assert torch.equal(part[0], codes[rows]) and torch.equal(part[1], scales[rows])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_nan_and_infinity_are_refused(bad, bits):
    weight = torch.randn(3, 40)
    weight[2, 39] = bad
    with pytest.raises(UsageError, match="holds NaN or infinity"):
        round_weight(weight, Scheme(bits, 32))


@pytest.mark.parametrize("bits", [4, 3])
def test_scales_weigh_errors_by_importance(bits):
    weight, importance = torch.randn(50, 128), torch.rand(128) ** 8
    losses = {}
    for counted in (False, True):
        codes, scales = round_weight(weight, Scheme(bits, 64), importance if counted else None)
        error = dequantize(pack(codes, scales, bits, 64)) - weight
        losses[counted] = (error.square() * importance).sum()
    assert losses[True] < 0.95 * losses[False]
    equal = round_weight(weight, Scheme(bits, 64), torch.full((128,), 3.0))
    assert all(map(torch.equal, equal, round_weight(weight, Scheme(bits, 64))))
