"""Rounding for known inputs: the products must change less than with the nearest codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baichuan.errors import UsageError
from baichuan.kernels.layout import dequantize, pack
from baichuan.quant.calibrated import round_calibrated
from baichuan.quant.rounding import round_weight
from baichuan.quant.scheme import Scheme

SCHEMES = st.builds(Scheme, st.sampled_from([8, 4, 3]), st.sampled_from([None, 32, 64, 128]))


def moment_of(columns, seed):
    """Give the second moment of inputs that depend on each other, some much larger than others."""
    torch.manual_seed(seed)
    inputs = torch.randn(4 * columns, columns) @ torch.randn(columns, columns)
    inputs *= torch.rand(columns) ** 3 + 0.01
    return inputs.T @ inputs / len(inputs)


def loss(weight, moment, rounded, scheme):
    """Give the mean squared change of the product over its mean square."""
    change = dequantize(pack(*rounded, scheme.bits, scheme.columns_per_group)) - weight
    return float(((change @ moment) * change).sum() / ((weight @ moment) * weight).sum())


@given(st.integers(1, 40), st.integers(2, 200), SCHEMES, st.integers(0, 2**20))
def test_codes_are_in_range_and_the_product_changes_less(rows, columns, scheme, seed):
    moment = moment_of(columns, seed)
    weight = torch.randn(rows, columns)
    codes, scales = rounded = round_calibrated(weight, moment.clone(), scheme)
    nearest = round_weight(weight, scheme)
    assert (codes.dtype, codes.shape) == (torch.int8, weight.shape)
    assert (scales.dtype, scales.shape) == (torch.bfloat16, nearest[1].shape)
    assert codes.max() <= 2 ** (scheme.bits - 1) - 1
    assert codes.min() >= (-127 if scheme.bits == 8 else -(2 ** (scheme.bits - 1)))
    # Damping may lose a little where next to nothing is lost.
    before = loss(weight, moment, nearest, scheme)
    assert loss(weight, moment, rounded, scheme) <= before * 1.05 + 1e-5


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_dependent_inputs_are_worth_half_the_loss(bits):
    moment, weight, scheme = moment_of(192, 0), torch.randn(64, 192), Scheme(bits, 64)
    after = loss(weight, moment, round_calibrated(weight, moment.clone(), scheme), scheme)
    assert after < 0.5 * loss(weight, moment, round_weight(weight, scheme), scheme)


def test_independent_equal_inputs_leave_nothing_to_make_up_for():
    weight, scheme = torch.randn(30, 128), Scheme(4, 32)
    found = loss(weight, torch.eye(128), round_calibrated(weight, torch.eye(128), scheme), scheme)
    nearest = loss(weight, torch.eye(128), round_weight(weight, scheme), scheme)
    assert 0.9 * nearest < found <= nearest


def test_inputs_that_are_never_seen_and_moments_of_low_rank():
    moment = torch.zeros(64, 64)
    moment[:40, :40] = torch.ones(40, 40)
    codes, scales = round_calibrated(torch.randn(20, 64), moment, Scheme(4, 32))
    assert scales.isfinite().all() and codes[:, 40:].any()
    codes, scales = round_calibrated(torch.zeros(3, 64), torch.zeros(64, 64), Scheme(3, 32))
    assert not codes.any() and scales.isfinite().all()


def test_nan_is_refused():
    with pytest.raises(UsageError, match="holds NaN or infinity"):
        round_calibrated(torch.tensor([[1.0, torch.nan]]), torch.eye(2), Scheme(4, 32))
    with pytest.raises(UsageError, match="inputs of a layer became NaN"):
        round_calibrated(torch.ones(1, 2), torch.eye(2) * torch.inf, Scheme(4, 32))
