"""Radial flows on every backend against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels import backends
from flowkernels.tolerances import error, tolerance

from . import stack_checks
from .stack_cases import DTYPES, Call, calls, inputs, run, small

ALL = calls("radial")
SMALL = small("radial")
FEW = [Call("radial", inverse=i, per_example=p) for i in (False, True) for p in (False, True)]


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
    stack_checks.rows_do_not_depend_on_the_batch(backend, "radial")


def test_gradients_are_the_same_from_run_to_run(backend):
    stack_checks.gradients_are_the_same_from_run_to_run(backend, "radial")


@pytest.mark.parametrize("inverse", [False, True])
def test_a_deep_wide_stack_in_segments(backend, inverse):
    """More layers than a backend keeps the inputs of."""
    rows = 3 if backends.interpreting() else 70
    stack_checks.compare(backend, Call("radial", rows=rows, features=600, depth=23, inverse=inverse))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("beta", [-30.0, 0.0, 1e4])
def test_extreme_values_and_gradients_are_finite(backend, size, alpha, beta, inverse):
    x = torch.tensor([[-1.0, 1.0, 0.3], [1e-4, -1e-4, 0.0], [1.0, -1.0, 0.5]]) * size
    leaves = [x, torch.tensor([0.1, 0.0, -0.2]), torch.tensor(alpha), torch.tensor(beta)]
    leaves = [t.clone().requires_grad_() for t in leaves]
    with fk.backend(backend):
        y, log_det = fk.radial(*leaves, inverse=inverse)
        grads = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
    for value in (y, log_det, *grads):
        assert value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [-15.0, -3.0, 0.5, 10.0])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 1e3])
def test_residual_of_the_inverse(backend, dtype, beta, size):
    parameters = [torch.tensor(t, dtype=dtype) for t in ([0.0, 0.0], 0.7, beta)]
    y = size * torch.randn(64, 2, dtype=dtype)
    with fk.backend(backend):
        x, _ = fk.radial(y, *parameters, inverse=True)
        again, _ = fk.radial(x, *parameters)
    assert (again - y).abs().max() <= tolerance(dtype) * y.abs().max()


@pytest.mark.parametrize("inverse", [False, True])
def test_at_the_centre(backend, inverse):
    """r has no gradient there; 0 is taken."""
    center = torch.tensor([1.0, -2.0])
    x = center.repeat(3, 1).requires_grad_()
    with fk.backend(backend):
        y, log_det = fk.radial(x, center, torch.tensor(0.5), torch.tensor(0.3), inverse=inverse)
        (from_log_det,) = torch.autograd.grad(log_det.sum(), x, retain_graph=True)
        (from_y,) = torch.autograd.grad(y.sum(), x)
    slope = torch.nn.functional.softplus(torch.tensor(0.3)) / 0.5
    assert torch.equal(y.detach(), x.detach())
    assert (from_log_det == 0).all()
    assert torch.allclose(from_y, (1 / slope if inverse else slope).expand(3, 2))


def test_alpha_has_to_be_positive(backend):
    x, center = torch.randn(3, 2), torch.zeros(2, 2)
    with fk.backend(backend):
        for alpha in (0.0, -1.0):
            y, log_det = fk.radial(x, center, torch.tensor([1.0, alpha]), torch.zeros(2))
            assert y.isnan().all()
            assert log_det.isnan().all()


def test_one_dimension(backend):
    """log_det is that of the scalar map: m has no part in it."""
    call = Call("radial", features=1, depth=1)
    tensors = inputs(call)
    with fk.backend(backend):
        x = tensors["x"].requires_grad_()
        y, log_det = run(call, {**tensors, "x": x})
        (slope,) = torch.autograd.grad(y.sum(), x)
    assert error(log_det, slope[:, 0].log()) <= tolerance(torch.float64)


def test_nan_stays_in_its_row(backend):
    call = Call("radial", rows=6)
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
