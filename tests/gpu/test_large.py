"""More than 2^31 elements: by rows, within a row, and by strides alone. Each is skipped where memory is short."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels.ops.affine_coupling import reference
from flowkernels.tolerances import error, tolerance

from .calls import TANH

pytestmark = pytest.mark.gpu

GIB = 2**30
HALF = torch.float16
FAR = 2**30 + 8  # elements between rows, or columns, of which the third is beyond 2^31


def need(gibibytes: float, device: torch.device) -> None:
    """Skip the test if less memory is free."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of free memory; {device} has {free / GIB:.1f}")


@pytest.fixture(autouse=True)
def _give_back():
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.mark.parametrize("strides", [(FAR, 1), (1, FAR)], ids=["far rows", "far columns"])
@pytest.mark.parametrize("far", ["x", "scale", "shift"])
def test_offsets_beyond_two_to_the_31(backend, device, strides, far):
    need(6, device)
    shape = (3, 3)
    memory = torch.empty(2 * FAR + 64, dtype=HALF, device=device)
    tensors = {name: torch.randn(shape, device=device).to(HALF) for name in ("x", "scale", "shift")}
    tensors[far] = memory.as_strided(shape, strides).copy_(tensors[far])
    x, scale, shift = (t.requires_grad_() for t in tensors.values())
    with fk.backend(backend):
        y, log_det = fk.affine_coupling(x, (scale, shift), form=TANH)
        grads = torch.autograd.grad(y, (x, scale, shift), torch.ones_like(y))
    exact_x, exact_scale, exact_shift = (t.detach().double() for t in (x, scale, shift))
    exact_y, exact_log_det = reference.forward(exact_x, exact_scale, exact_shift, None, None, TANH, 0, False)
    ones = torch.ones_like(exact_y)
    exact_grads = reference.backward(ones, None, exact_x, exact_scale, exact_scale, None, None, TANH, 0, False)
    assert error(y, exact_y) <= tolerance(HALF)
    assert error(log_det, exact_log_det) <= tolerance(torch.float32, shape[1])
    for grad, exact in zip(grads, exact_grads):
        assert error(grad, exact) <= tolerance(HALF)


def test_a_batch_of_more_elements(backend, device):
    """Rows that are all one row in memory: only what is written is large."""
    need(11, device)
    rows, columns = 2**20 + 3, 2**11
    row = torch.randn(1, columns, device=device).to(HALF)
    raw = torch.randn(1, 2 * columns, device=device).to(HALF)
    with fk.backend(backend):
        expected_y, expected_log_det = fk.affine_coupling(row, raw, form=TANH)
        x = row.expand(rows, columns).detach().requires_grad_()
        y, log_det = fk.affine_coupling(x, raw.expand(rows, -1), form=TANH)
        assert y.numel() > 2**31
        _assert_all_rows(y, expected_y)
        assert torch.equal(log_det, expected_log_det.expand(rows))
        few = row.expand(2, columns).detach().requires_grad_()
        few_y, _ = fk.affine_coupling(few, raw.expand(2, -1), form=TANH)
        (expected,) = torch.autograd.grad(few_y, few, torch.ones_like(row).expand(2, -1))
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(row).expand(rows, -1))
        _assert_all_rows(grad, expected[:1])


def _assert_all_rows(values: torch.Tensor, row: torch.Tensor) -> None:
    """In pieces: a comparison of everything would take as much memory again."""
    for piece in values.detach().split(max(1, 2**25 // values.shape[1])):
        assert torch.equal(piece, row.detach().expand_as(piece))


def test_a_row_of_more_elements(backend, device):
    """Its log-determinant sums 2^31 terms of 2^-20; a float32 counter would stop at 2^24 of them."""
    need(6, device)
    columns = 2**31 + 5
    x, s, t = (torch.full((1, 1), value, dtype=HALF, device=device) for value in (1.0, 2.0**-20, 0.5))
    with fk.backend(backend):
        y, log_det = fk.affine_coupling(x.expand(1, columns), (s.expand(1, columns), t.expand(1, columns)))
        small, _ = fk.affine_coupling(x, (s, t))
    _assert_all_rows(y.view(-1, 1), small)
    assert abs(log_det.item() / (columns * 2.0**-20) - 1) <= 1e-5
