"""Planar flows on every backend against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels import backends
from flowkernels.ops.planar import reference
from flowkernels.tolerances import error, tolerance

from . import stack_checks
from .stack_cases import DTYPES, Call, calls, inputs, run, small

ALL = calls("planar")
SMALL = small("planar")
FEW = [Call("planar", inverse=i, per_example=p) for i in (False, True) for p in (False, True)]


@pytest.mark.parametrize("call", ALL, ids=str)
def test_values_and_gradients(backend, call, guarded):
    stack_checks.compare(backend, call, guarded=guarded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", FEW, ids=str)
def test_dtypes(backend, call, dtype):
    stack_checks.compare(backend, call, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("call", SMALL, ids=str)
def test_round_trip(backend, call, dtype):
    stack_checks.round_trip(backend, call, dtype)


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_log_det_is_that_of_the_jacobian(backend, call):
    stack_checks.log_det_is_that_of_the_jacobian(backend, call)


def test_rows_do_not_depend_on_the_batch(backend):
    stack_checks.rows_do_not_depend_on_the_batch(backend, "planar")


def test_gradients_are_the_same_from_run_to_run(backend):
    stack_checks.gradients_are_the_same_from_run_to_run(backend, "planar")


@pytest.mark.parametrize("inverse", [False, True])
def test_a_deep_wide_stack_in_segments(backend, inverse):
    """More layers than a backend keeps the inputs of."""
    rows = 3 if backends.interpreting() else 70
    stack_checks.compare(backend, Call("planar", rows=rows, features=600, depth=23, inverse=inverse))


def extreme(dtype, size):
    """Layers with w'u, and rows with w'x + b, from -1e4 to 1e4; |w| down to 1e-10."""
    products = torch.tensor([-1e4, -100, -18, -1, 0, 1, 18, 100, 1e4], dtype=dtype)
    norms = torch.tensor([1e-10, 1e-3, 1, 30], dtype=dtype)
    w = norms.repeat_interleave(len(products))[:, None] * torch.tensor([[0.6, -0.8]], dtype=dtype)
    u = products.repeat(len(norms))[:, None] * w / (w * w).sum(1, keepdim=True)
    x = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [1e-4, -1e-4], [0.3, 0.2], [1.0, -1.0]], dtype=dtype) * size
    return x, u, w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("bias", [-1e4, 0.0, 3.0])
def test_extreme_values_and_gradients_are_finite(backend, dtype, size, bias):
    x, u, w = extreme(dtype, size)
    with fk.backend(backend):
        for layer in range(len(u)):
            leaves = [t.clone().requires_grad_() for t in (x, u[layer], w[layer], torch.tensor(bias, dtype=dtype))]
            y, log_det = fk.planar(*leaves)
            grads = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
            for value in (y, log_det, *grads):
                assert value.isfinite().all(), (u[layer], w[layer])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_extreme_log_det_is_exact(backend, size):
    x, u, w = extreme(torch.float32, size)
    ordinary = w.norm(dim=1) > 1e-4  # below, w'u itself is what float32 leaves of it
    with fk.backend(backend):
        for layer in torch.nonzero(ordinary).flatten():
            b = torch.tensor(0.5)
            _, log_det = fk.planar(x, u[layer], w[layer], b)
            with fk.backend("reference"):
                tensors = [t.double() for t in (x, u[layer], w[layer], b)]
                _, exact = fk.planar(*tensors)
            a = (tensors[0] @ tensors[2]).abs() + 0.5
            product = (tensors[1] * tensors[2]).abs().sum()
            allowed = 4 * tolerance(torch.float32) * (1 + a + product.clamp(max=100))
            assert ((log_det - exact).abs() <= allowed * (1 + exact.abs())).all(), (u[layer], w[layer])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("product", [-1e3, -30, -18, -5, -1, 0, 1, 10, 1e3])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 30.0, 1e3])
def test_residual_of_the_inverse(backend, dtype, product, size):
    """|f(f^-1(y)) - y| is a few roundings at f's slope, and the error of f^-1(y) that times the condition number."""
    w = torch.tensor([0.6, -0.8], dtype=dtype)
    u, b = product * w, torch.tensor(0.1, dtype=dtype)
    y = size * torch.randn(64, 2, dtype=dtype)
    with fk.backend(backend):
        x, _ = fk.planar(y, u, w, b, inverse=True)
        again, _ = fk.planar(x, u, w, b)
    corrected = reference.constrained(u.double()[None], w.double()[None])[0].abs().max()
    slope = torch.cosh((x.double() @ w.double() + b).clamp(-300, 300)) ** -2
    units, steepest = tolerance(dtype), 1 + corrected * slope
    scale = (1 + x.abs().amax(1) + y.abs().amax(1) + corrected) * steepest
    assert ((again - y).abs().amax(1) <= units * scale).all()
    with fk.backend("reference"):
        exact, exact_log_det = fk.planar(y.double(), u.double(), w.double(), b.double(), inverse=True)
    if dtype == torch.float32:
        condition = 1 + exact_log_det.exp()  # of the only direction that changes; at a flat point a cube root's
        at_root = (units * scale) ** (1 / 3) * 3
        allowed = torch.minimum(units * scale * condition, units * scale + at_root * (1 + corrected))
        assert ((x - exact).abs().amax(1) <= 4 * allowed).all()


def test_inverse_where_nothing_is_left_of_the_determinant(backend):
    """w'u' = -1 to the last bit: the map is z - w tanh(w'z), whose slope at 0 is 0."""
    w = torch.tensor([1.0, 0.0])
    y = torch.tensor([[0.0, 2.0], [1e-9, 0.0], [-1e-3, 1.0], [0.5, 0.0]])
    with fk.backend(backend):
        x, log_det = fk.planar(y, -200 * w, w, torch.tensor(0.0), inverse=True)
        again, _ = fk.planar(x, -200 * w, w, torch.tensor(0.0))
    assert x.isfinite().all()
    assert error(again, y) <= tolerance(torch.float32)
    assert torch.allclose(x[1:3, 0], torch.tensor([3e-9, -3e-3]).sign() * torch.tensor([3e-9, 3e-3]) ** (1 / 3), 1e-2)
    assert 80 < log_det[0] < 90  # p is kept at the smallest normal number


def test_where_w_is_zero_the_layer_is_a_shift(backend):
    u = torch.tensor([0.3, -2.0])
    x = torch.randn(4, 2)
    leaf = torch.zeros(2, requires_grad=True)
    with fk.backend(backend):
        y, log_det = fk.planar(x, u, leaf, torch.tensor(0.7))
        (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), leaf)
    assert torch.allclose(y, x + u * torch.tanh(torch.tensor(0.7)))
    assert (log_det == 0).all()
    assert grad.isfinite().all()


def test_nan_stays_in_its_row(backend):
    call = Call("planar", rows=6)
    for inverse in (False, True):
        tensors = {name: t.float() for name, t in inputs(call).items()}
        tensors["x"][2, 1] = float("nan")
        with fk.backend(backend):
            y, log_det = run(call, tensors, inverse=inverse)
        assert y[2].isnan().all()
        assert log_det[2].isnan()
        others = [0, 1, 3, 4, 5]
        assert y[others].isfinite().all()
        assert log_det[others].isfinite().all()


def test_expanded_parameters_of_each_example_are_read_in_place(backend):
    call = Call("planar", rows=7, features=4, depth=3)
    tensors = inputs(call)
    expanded = {n: t if n == "x" else t.expand(7, *t.shape) for n, t in tensors.items()}
    with fk.backend(backend):
        for got, expected in zip(run(call, expanded), run(call, tensors)):
            assert error(got, expected) <= tolerance(torch.float64)


def test_one_layer_may_leave_out_the_dimension_of_layers(backend):
    x, u, w, b = torch.randn(5, 3), torch.randn(3), torch.randn(3), torch.tensor(0.2)
    leaf = u.clone().requires_grad_()
    with fk.backend(backend):
        one, stack = fk.planar(x, leaf, w, b), fk.planar(x, u[None], w[None], b[None])
        (grad,) = torch.autograd.grad(one[0].sum(), leaf)
    assert all(torch.equal(a, b) for a, b in zip(one, stack))
    assert grad.shape == (3,)
