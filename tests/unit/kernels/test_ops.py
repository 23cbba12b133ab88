"""Every implementation of this machine: one result to the last bit, and the right one."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from baichuan.errors import UsageError
from baichuan.kernels import gradients, native, ops, reference
from baichuan.kernels.layout import dequantize, pack, packed_shapes
from baichuan.kernels.ops import Norm

ALL = native.available()
NATIVE = ALL[1:]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: Of one result, relative to the sum of the magnitudes of what is added.
UNIT = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
#: What is lost of a result below the normal range.
FLOOR = {torch.float32: 1e-30, torch.bfloat16: 1e-30, torch.float16: 2**-24}


def random_matrix(rows, columns, bits=4, group=64, per_row=False):
    """Give codes over their whole range and scales of either sign."""
    highest = 2 ** (bits - 1) - 1
    lowest = -highest if bits == 8 else -highest - 1
    codes = torch.randint(lowest, highest + 1, (rows, columns), dtype=torch.int8)
    scales = torch.randn(rows, 1 if per_row else -(-columns // group)) / highest
    return pack(codes, scales, bits, group)


@dataclass(repr=False)
class Case:
    """The arguments of one call of `ops.linear`."""

    x: torch.Tensor
    weight: object
    up: object
    norm: Norm | None
    residual: torch.Tensor | None

    def __repr__(self):
        x, w, up = self.x, self.weight, self.up
        matrices = [(m.bits, list(m.scales.shape)) for m in (w, up) if m is not None]
        return (
            f"{x.dtype} {list(x.shape)} {w.rows} outputs, groups of {w.group_size}, {matrices}, "
            f"norm {self.norm is not None}, residual {self.residual is not None}"
        )

    def _repr_pretty_(self, printer, _):
        printer.text(repr(self))

    def run(self, monkeypatch, name, rows=slice(None)):
        monkeypatch.setenv("BAICHUAN_KERNELS", name)
        residual = None if self.residual is None else self.residual[rows]
        with torch.no_grad():
            return ops.linear(
                self.x[rows], self.weight, up=self.up, norm=self.norm, residual=residual
            )


@st.composite
def cases(draw, fused=st.booleans()):
    rows = draw(st.one_of(st.integers(1, 70), st.sampled_from([511, 513, 545])))
    columns, outputs = draw(st.integers(1, 300)), draw(st.integers(1, 70))
    group, bits = draw(st.sampled_from([32, 64, 128, 256])), draw(st.sampled_from([3, 4, 8]))
    dtype = draw(st.sampled_from(DTYPES))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    norm = Norm(torch.rand(columns) + 0.5, 1e-6) if draw(fused) else None
    up = random_matrix(
        outputs, columns, draw(st.sampled_from([3, 4, 8])), group, draw(st.booleans())
    )
    return Case(
        x=(torch.randn(rows, columns) * torch.randn(rows, 1).exp()).to(dtype),
        weight=random_matrix(outputs, columns, bits, group, draw(st.booleans())),
        up=up if draw(fused) else None,
        norm=norm,
        residual=torch.randn(rows, outputs).to(dtype) if draw(fused) else None,
    )


def product(x, weight):
    """Give x W^T in float64, and the most that rounding x to int8 can change of it."""
    exact = dequantize(weight).double()
    step = F.pad(x, (0, -x.shape[1] % weight.group_size)).view(len(x), -1, weight.group_size)
    half = step.abs().amax(-1).repeat_interleave(weight.group_size, 1)[:, : x.shape[1]] / 254
    return x @ exact.T, half @ exact.abs().T * 1.001


def exact_result(case):
    """Give the result in float64 without rounding of x, and the error allowed for that rounding."""
    x = case.x.double()
    if case.norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + case.norm.eps) * case.norm.weight
    y, error = product(x, case.weight)
    size = x.abs() @ dequantize(case.weight).double().abs().T
    if case.up is not None:
        other, other_error = product(x, case.up)
        # The slope of silu is below 1.1.
        error = 1.1 * error * (other.abs() + other_error) + (y.abs() + error) * other_error
        size = size * (x.abs() @ dequantize(case.up).double().abs().T)
        y = F.silu(y) * other
    if case.residual is not None:
        y, size = y + case.residual, size + case.residual.abs()
    return y, error, size


def allowance(case, size):
    """Give what float32 sums and the dtype of the result may change."""
    return UNIT[case.x.dtype] * size + FLOOR[case.x.dtype]


@pytest.mark.parametrize("name", ALL)
def test_results_are_those_of_float64_but_for_rounding(monkeypatch, name):
    @settings(max_examples=60)
    @given(cases())
    def check(case):
        y, error, size = exact_result(case)
        given = case.run(monkeypatch, name)
        assert given.dtype == case.x.dtype and given.shape == y.shape
        close = (given.double() - y).abs() <= error + allowance(case, size)
        beyond = y.abs() + error > torch.finfo(case.x.dtype).max * 0.99
        assert (close | beyond).all()

    check()


@pytest.mark.parametrize("name", ALL)
def test_the_input_is_rounded_to_the_nearest_code(monkeypatch, name):
    @settings(max_examples=40)
    @given(cases(fused=st.just(False)))
    def check(case):
        codes, scales = reference.round_activations(case.x.float(), case.weight.group_size)
        rounded = (codes.double() * scales[..., None]).flatten(1)[:, : case.weight.columns]
        exact = dequantize(case.weight).double()
        allowed = allowance(case, rounded.abs() @ exact.abs().T)
        difference = case.run(monkeypatch, name).double() - rounded @ exact.T
        assert (difference.abs() <= allowed).all()

    check()


def same(a, b):
    """Say whether two tensors hold the same bits; any NaN equals any other."""
    both = a.isnan() & b.isnan()
    return torch.equal(a.masked_fill(both, 0), b.masked_fill(both, 0))


def disturb(x, share):
    """Put zeros, NaN, infinities, and numbers near the ends of the range in place of some."""
    odd = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-38, 1e-44])
    chosen = odd[torch.randint(len(odd), x.shape)].to(x.dtype)
    return torch.where(torch.rand(x.shape) < share, chosen, x)


@settings(max_examples=150)
@given(case=cases(), share=st.sampled_from([0.0, 0.01, 0.5]))
def test_all_native_code_agrees_to_the_last_bit(case, share):
    case.x = disturb(case.x, share)
    with pytest.MonkeyPatch.context() as patch:
        results = [case.run(patch, name) for name in NATIVE]
    assert all(same(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("name", ALL)
def test_a_row_does_not_depend_on_its_batch(monkeypatch, name):
    @settings(max_examples=40)
    @given(cases(), st.data())
    def check(case, data):
        case.x = disturb(case.x, 0.001)
        first = data.draw(st.integers(0, len(case.x) - 1))
        rows = slice(first, data.draw(st.integers(first + 1, len(case.x))))
        assert same(case.run(monkeypatch, name)[rows], case.run(monkeypatch, name, rows))

    check()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rows", [1, 40, 600])
def test_the_number_of_threads_does_not_matter(monkeypatch, name, rows):
    norm = Norm(torch.ones(200), 1e-6)
    x = torch.randn(rows, 200)
    case = Case(x, random_matrix(100, 200), random_matrix(100, 200, 8), norm, None)
    one = case.run(monkeypatch, name)
    torch.set_num_threads(2)
    try:
        assert torch.equal(case.run(monkeypatch, name), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("fused", [False, True])
def test_nan_and_infinity_make_their_row_nan_and_no_other(monkeypatch, name, dtype, bad, fused):
    x = torch.randn(35, 130).to(dtype)
    x[4, 129] = bad
    norm = Norm(torch.ones(130), 1e-6) if fused else None
    up = random_matrix(33, 130) if fused else None
    y = Case(x, random_matrix(33, 130), up, norm, None).run(monkeypatch, name)
    assert y[4].isnan().all()
    others = [row for row in range(35) if row != 4]
    assert y[others].isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_ties_go_to_the_even_code(monkeypatch, name):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    identity = pack(torch.eye(32, dtype=torch.int8), torch.ones(32, 1), 8, 32)
    x = torch.zeros(1, 32)
    x[0, :7] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert ops.linear(x, identity)[0, :7].tolist() == [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0]


@pytest.mark.parametrize("name", ALL)
def test_codes_of_activations_are_the_references(monkeypatch, name):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    identity = pack(torch.eye(256, dtype=torch.int8), torch.ones(256, 2), 8, 128)
    x = torch.randn(2000, 256) * torch.randn(2000, 1).exp()
    codes, scales = reference.round_activations(x, 128)
    assert torch.equal(ops.linear(x, identity), (codes * scales[..., None]).flatten(1))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-31])
def test_tiny_numbers_are_zeros(monkeypatch, name, size):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    weight = random_matrix(20, 70, per_row=True)
    x = torch.randn(3, 70).clamp(-5, 5)
    x[1] *= size / 10
    y = ops.linear(x, weight)
    assert (y[1] == 0).all()
    assert torch.equal(y[[0, 2]], ops.linear(x[[0, 2]], weight))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [1e-25, 1e30])
def test_the_size_of_the_input_does_not_matter(monkeypatch, name, size):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    weight = random_matrix(20, 70)
    x = torch.randn(3, 70)
    scale = 2.0 ** round(torch.tensor(size).log2().item())
    assert torch.equal(ops.linear(x * scale, weight), ops.linear(x, weight) * scale)


@pytest.mark.parametrize("name", ALL)
def test_any_shape_and_strides(monkeypatch, name):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    weight = random_matrix(24, 40)
    x, residual = torch.randn(2, 3, 40), torch.randn(2, 3, 24)
    y = ops.linear(x, weight, residual=residual)
    assert y.shape == (2, 3, 24)
    turned = ops.linear(x.transpose(0, 1), weight, residual=residual.transpose(0, 1))
    assert torch.equal(turned.transpose(0, 1), y)
    assert torch.equal(ops.linear(x[1, 2], weight, residual=residual[1, 2]), y[1, 2])
    assert ops.linear(x[:0], weight).shape == (0, 3, 24)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_dequantized_weight(dtype):
    weight, up = random_matrix(24, 40), random_matrix(24, 40, 8)
    given = [torch.randn(5, 40, dtype=dtype), torch.rand(40) + 0.5, torch.randn(5, 24, dtype=dtype)]
    results = []
    for quantized in (True, False):
        x, norm, residual = (t.clone().requires_grad_() for t in given)
        if quantized:
            y = ops.linear(x, weight, up=up, norm=Norm(norm, 1e-6), residual=residual)
        else:
            inner = reference.rms_norm(x.float(), norm, 1e-6).to(dtype)
            gate = F.silu(F.linear(inner, dequantize(weight, dtype)))
            y = gate * F.linear(inner, dequantize(up, dtype)) + residual
        (y * torch.arange(24, dtype=dtype)).sum().backward()
        results.append([y, x.grad, norm.grad, residual.grad])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("trained", ["norm", "residual"])
def test_gradients_reach_what_stands_around_a_frozen_input(trained):
    norm, residual = torch.ones(40), torch.zeros(2, 24)
    target = {"norm": norm, "residual": residual}[trained].requires_grad_()
    x = torch.randn(2, 40)
    ops.linear(x, random_matrix(24, 40), norm=Norm(norm, 1e-6), residual=residual).sum().backward()
    assert target.grad.abs().sum() > 0


def refused(match, x=None, **changes):
    arguments = {"weight": random_matrix(24, 40), **changes}
    with pytest.raises(UsageError, match=match):
        ops.linear(torch.randn(2, 40) if x is None else x, **arguments)


def test_what_does_not_fit_is_refused():
    refused(r"\[2, 41\].*takes floats \[..., 40\]", torch.randn(2, 41))
    refused(r"int64 \[2, 40\]", torch.ones(2, 40, dtype=torch.long))
    refused(r"takes floats", torch.tensor(1.0))
    refused("one shape, one group size", up=random_matrix(25, 40))
    refused("one shape, one group size", up=random_matrix(24, 40, group=32))
    refused(r"norm.weight is .*\[39\].*must be .*\[40\]", norm=Norm(torch.ones(39), 1e-6))
    refused(r"residual is .*\[2, 23\].*must be .*\[2, 24\]", residual=torch.zeros(2, 23))
    refused("residual is torch.bfloat16", residual=torch.zeros(2, 24).bfloat16())
    refused("input is on meta, the weight on cpu", torch.randn(2, 40, device="meta"))


def test_a_matrix_that_does_not_hold_together_cannot_be_made():
    weight = random_matrix(24, 40)
    apart = weight.codes.repeat(1, 1, 2)[..., ::2]
    for name, tensor in (
        ("codes", weight.codes[:1]),
        ("codes", apart),
        ("codes", weight.codes.view(torch.int8)),
        ("scales", weight.scales[:, :, :8]),
        ("scales", weight.scales.float()),
        ("scales", weight.scales.to("meta")),
    ):
        with pytest.raises(UsageError, match=f"The {name} of a quantized weight.*contiguous"):
            replace(weight, **{name: tensor})


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strided_norm_is_the_same_norm(monkeypatch, name, dtype):
    weights, x, matrix = torch.rand(40, 3).to(dtype), torch.randn(2, 40), random_matrix(24, 40)
    results = [
        Case(x, matrix, None, Norm(given, 1e-6), None).run(monkeypatch, name)
        for given in (weights[:, 1].contiguous(), weights[:, 1])
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ALL)
def test_extreme_activations_give_the_right_value_or_nan(name, monkeypatch):
    monkeypatch.setenv("BAICHUAN_KERNELS", name)
    gates = torch.tensor([-3e38, -1e30, -1e4, -201.0, -199.0, -88.0, 0.0])
    x = gates[:, None] * F.pad(torch.eye(1), (0, 31))
    x[:, 1] = 1.0 / 127  # a code of 0 beside so large a gate: what is multiplied is exactly up
    one = pack(F.pad(torch.eye(1, dtype=torch.int8), (0, 31)), torch.ones(1, 1), 8, 32)
    silu = ops.linear(x, one, up=one)[:, 0]
    expected = F.silu(gates.double()) * gates.double()
    assert torch.allclose(silu.double(), expected, rtol=1e-2, atol=1e-30)
    huge, norm = torch.full((1, 32), 3e19), Norm(torch.ones(32), 1e-6)
    assert ops.linear(huge, one, norm=norm).isnan().all()
    assert ops.linear(huge, one, norm=norm, exact=True).isnan().all()


@pytest.mark.parametrize(
    ("bits", "group", "rows", "columns"),
    [
        *((4, 0, 16, 32), (4, 31, 16, 32), (5, 32, 16, 32), (0, 32, 16, 32), (8, -32, 16, 32)),
        *((3, 48, 16, 96), (4, 32, 0, 32), (4, 32, 16, 0), (4, 32, -3, 32)),
    ],
)
def test_formats_that_there_are_not_are_refused(bits, group, rows, columns):
    with pytest.raises(UsageError, match=r"cannot be; bits are 3, 4 or 8"):
        packed_shapes(rows, columns, bits, group, per_row=True)
    if rows >= 0:
        with pytest.raises(UsageError):
            pack(torch.zeros(rows, columns, dtype=torch.int8), torch.ones(rows, 1), bits, group)


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        (torch.full((16, 32), 8, dtype=torch.int8), 4),
        (torch.full((16, 32), -5, dtype=torch.int8), 3),
        (torch.zeros((16, 32), dtype=torch.int32), 8),
        (torch.zeros((16, 32), dtype=torch.uint8), 4),
    ],
)
def test_codes_that_the_bits_cannot_hold_are_refused(codes, bits):
    with pytest.raises(UsageError, match=f"of {bits} bits they are int8 from"):
        pack(codes, torch.ones(16, 1), bits, 32)


@pytest.mark.parametrize("columns", [slice(32, 200), slice(-32, 64), slice(16, 32), slice(64, 32)])
def test_columns_that_a_weight_has_not_are_refused(columns):
    with pytest.raises(UsageError, match="columns"):
        gradients.dense(random_matrix(20, 128), torch.float32, columns)
