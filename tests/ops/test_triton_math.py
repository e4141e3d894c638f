"""The elementary functions of the Triton kernels, each within 4 ulp over its whole range.

In the interpreter numpy does the arithmetic. The functions are made of correctly rounded operations alone in float32
(tests/cubins holds them to that), so what is measured here is what a GPU computes, up to contraction to FMA.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flowkernels import backends

pytest.importorskip("triton", reason="no triton here")
import triton
import triton.language as tl

from flowkernels.ops import triton_math

if not backends.interpreting() and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
mpmath = pytest.importorskip("mpmath")

DEVICE = "cpu" if backends.interpreting() else "cuda"
LARGEST = {torch.float32: 88.0, torch.float64: 708.0}


@triton.jit
def apply_kernel(x_ptr, y_ptr, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, FUNCTION(tl.load(x_ptr + i, i < n)), i < n)


@triton.jit
def log_of_product_kernel(x_ptr, y_ptr, n, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    product = tl.full((ROWS,), 1, x_ptr.dtype.element_ty)
    exponent = tl.zeros((ROWS,), tl.int64 if x_ptr.dtype.element_ty == tl.float64 else tl.int32)
    for i in range(n):
        factor = tl.load(x_ptr + row * n + i)
        product, exponent = triton_math.scale_apart(product * factor, exponent)
    tl.store(y_ptr + row, triton_math.log_scaled(product, exponent))


def evaluate(name: str, x: torch.Tensor) -> torch.Tensor:
    x = x.to(DEVICE)
    y = torch.empty_like(x)
    block = 2**16
    with np.errstate(all="ignore"):
        apply_kernel[(triton.cdiv(len(x), block),)](x, y, len(x), getattr(triton_math, name), block)
    return y.cpu()


def exact_sech2(x):
    e = torch.exp(-2 * x.abs())
    return 4 * e / (1 + e) ** 2


def negative_part_log1p(x):
    return torch.log1p(torch.exp(-x.abs()))


# (reference in float64 for float32 arguments, the same in mpmath, where the function is to be trusted)
EVERYWHERE = (-math.inf, math.inf)
FUNCTIONS = {
    "exp": (torch.exp, mpmath.exp, EVERYWHERE),
    "expm1_positive": (torch.expm1, mpmath.expm1, (0, LARGEST)),
    "log": (torch.log, mpmath.log, (0, math.inf)),
    "log1p_unit": (torch.log1p, mpmath.log1p, (0, 1)),
    "sqrt": (torch.sqrt, mpmath.sqrt, (0, math.inf)),
    "tanh": (torch.tanh, mpmath.tanh, EVERYWHERE),
    "sech2": (exact_sech2, lambda x: mpmath.sech(x) ** 2, (-43.5, 43.5)),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), EVERYWHERE),
    "log_sigmoid": (
        lambda x: x.clamp(max=0) - negative_part_log1p(x),
        lambda x: -mpmath.log1p(mpmath.exp(-x)),
        EVERYWHERE,
    ),
    "softplus": (
        lambda x: x.clamp(min=0) + negative_part_log1p(x),
        lambda x: mpmath.log1p(mpmath.exp(x)),
        EVERYWHERE,
    ),
    "atan": (torch.atan, mpmath.atan, EVERYWHERE),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def within(name: str, x: torch.Tensor) -> torch.Tensor:
    low, high = FUNCTIONS[name][2]
    return x[x.isfinite() & (x >= low) & (x <= (high[x.dtype] if isinstance(high, dict) else high))]


def arguments(name: str) -> torch.Tensor:
    """Every 4093rd of the float32 numbers there are, subnormals included, and where most functions bend."""
    bits = torch.arange(-(2**31), 2**31, 4093, dtype=torch.int64).to(torch.int32)
    dense = torch.cat([torch.linspace(-r, r, 100_001) for r in (1.0, 3.0, 20.0, 110.0)])
    return within(name, torch.cat([bits.view(torch.float32), dense]))


def ulps(y: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Errors in units of the last place of the exact value in float32."""
    rounded = exact.float()
    unit = torch.nextafter(rounded.abs(), torch.tensor(math.inf)).double() - rounded.abs().double()
    finite = rounded.isfinite()
    assert torch.equal(y[~finite], rounded[~finite])
    return ((y.double() - exact).abs() / unit)[finite]


@functions
def test_float32_is_within_4_ulp(name):
    x = arguments(name)
    errors = ulps(evaluate(name, x), FUNCTIONS[name][0](x.double()))
    assert errors.max() <= 4


@functions
def test_float64_is_within_4_ulp(name):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(600, dtype=torch.float64, generator=generator) * 2 - 1
    x = within(name, torch.cat([uniform * r for r in (1e-300, 1e-9, 0.5, 1.0, 3.0, 40.0, 700.0)]))
    y = evaluate(name, x)
    with mpmath.workdps(400):  # enough for 1 + 1e-300
        exact = [FUNCTIONS[name][1](mpmath.mpf(v)) for v in x.tolist()]
        errors = [abs(mpmath.mpf(v) - e) / math.ulp(float(e)) for v, e in zip(y.tolist(), exact)]
    assert max(errors) <= 4


SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (math.inf, math.inf), (-math.inf, 0.0)],
    "expm1_positive": [(0.0, 0.0)],
    "log": [(0.0, -math.inf), (-0.0, -math.inf), (1.0, 0.0), (math.inf, math.inf), (-1.0, math.nan)],
    "log1p_unit": [(0.0, 0.0)],
    "sqrt": [(0.0, 0.0), (math.inf, math.inf), (-1.0, math.nan)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (math.inf, 1.0), (-math.inf, -1.0)],
    "sech2": [(0.0, 1.0), (math.inf, 0.0), (-math.inf, 0.0)],
    "sigmoid": [(0.0, 0.5), (math.inf, 1.0), (-math.inf, 0.0)],
    "log_sigmoid": [(math.inf, 0.0), (-math.inf, -math.inf)],
    "softplus": [(math.inf, math.inf), (-math.inf, 0.0)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (math.inf, math.pi / 2), (-math.inf, -math.pi / 2)],
}


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_special_values(name, dtype):
    x, expected = torch.tensor(SPECIAL[name], dtype=torch.float64).to(dtype).T.contiguous()
    y = evaluate(name, x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    zero = expected == 0
    if name in ("tanh", "atan"):  # the odd ones
        assert torch.equal(y.signbit()[zero], expected.signbit()[zero])
    assert evaluate(name, torch.tensor([math.nan], dtype=dtype)).isnan().all()


@functions
def test_subnormals_are_kept(name):
    """tanh(x) = x there, for example; exp(-100) is subnormal itself."""
    x = within(name, torch.tensor([1e-45, 1e-40, -1e-45, -1e-40, -100.0, -87.5, -103.0]))
    torch.testing.assert_close(evaluate(name, x), FUNCTIONS[name][0](x.double()).float(), rtol=1e-6, atol=1.5e-45)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_derivative_of_tanh_does_not_saturate_early(dtype):
    x = torch.tensor([9.0, 20.0, 43.0], dtype=dtype)
    torch.testing.assert_close(evaluate("sech2", x), exact_sech2(x.double()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_long_product_neither_overflows_nor_underflows(dtype):
    rows, factors = 8, 200
    scale = torch.tensor([1e-30, 1e-3, 0.999, 1.0, 1.001, 1e3, 1e30, 1.0], dtype=dtype)
    x = scale[:, None] * (1 + 0.1 * torch.rand(rows, factors, dtype=dtype))
    x[7, 3:6] = torch.tensor([1e-30, 1e30, 1e-3], dtype=dtype)
    y = torch.empty(rows, dtype=dtype, device=DEVICE)
    log_of_product_kernel[(1,)](x.to(DEVICE), y, factors, rows)
    exact = x.double().log().sum(1)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.cpu().double(), exact, rtol=2 * eps, atol=factors * eps)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_a_product_keeps_what_is_no_number(value):
    x = torch.tensor([[2.0, value, 0.5, 3.0]])
    y = torch.empty(1, device=DEVICE)
    with np.errstate(all="ignore"):
        log_of_product_kernel[(1,)](x.to(DEVICE), y, 4, 1)
    torch.testing.assert_close(y.cpu(), torch.tensor([value]).log(), equal_nan=True)
