"""Rational-quadratic splines on the device: the cases of tests/ops, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk

from ..ops.spline_cases import ALL, DTYPES, EIGHT, FORMS, Call
from ..ops.test_rational_quadratic_spline import compare
from .calls import same

pytestmark = pytest.mark.gpu

RUNS = 30
# A few elements, rows of many and in chunks, batches of many short rows, pictures.
SHAPES = [(4000, 2), (513, 31), (40, 2048), (3, 20001), (65536, 8), (16, 6, 32, 32), (9, 3, 7, 9)]


@pytest.fixture(autouse=True)
def _on_the_device(device):
    """Cases are made on the default device."""
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("call", ALL, ids=str)
def test_values_and_gradients(backend, call):
    compare(backend, call)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inverse", [False, True])
def test_shapes(backend, shape, inverse):
    compare(backend, Call(shape=shape, passive=shape[1] // 2, inverse=inverse))


@pytest.mark.parametrize("dtype, raw_dtype", DTYPES, ids=str)
def test_dtypes(backend, dtype, raw_dtype):
    for form in (EIGHT, FORMS[-1]):
        compare(backend, Call(form, (64, 18), passive=2), dtype, raw_dtype)


@pytest.mark.parametrize("shape", [(4096, 8), (3, 20001), (16, 4, 16, 16)], ids=str)
def test_same_bits_every_time(backend, shape):
    x = torch.randn(shape).requires_grad_()
    raw = torch.randn(shape[0], shape[1] * EIGHT.parameters, *shape[2:]).requires_grad_()

    def both_ways():
        y, log_det = fk.rational_quadratic_spline(x, raw)
        return y, log_det, *torch.autograd.grad(y.square().sum() + log_det.sum(), (x, raw))

    with fk.backend(backend):
        first = both_ways()
        assert all(t.isfinite().all() for t in first)
        for run in range(RUNS):
            assert same(both_ways(), first), f"run {run} differs"
