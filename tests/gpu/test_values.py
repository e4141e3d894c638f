"""Values and gradients on the device: the cases of tests/ops, misaligned memory, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels.ops.affine_coupling import reference
from flowkernels.tolerances import error, tolerance

from ..ops.affine_cases import ALL, BY_DIVISION, BY_STRIDES, DTYPES
from ..ops.test_affine_coupling import compare
from .calls import TANH, both_ways, leaves, same

pytestmark = pytest.mark.gpu

RUNS = 100


@pytest.mark.parametrize("call", ALL, ids=str)
def test_values_and_gradients(backend, device, call):
    compare(backend, call, device=device)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
@pytest.mark.parametrize("call", [ALL[1], *BY_DIVISION[:4], BY_STRIDES[0], BY_STRIDES[-1]], ids=str)
def test_dtypes(backend, device, call, dtypes):
    compare(backend, call, *dtypes, device=device)


def shifted(values: torch.Tensor) -> torch.Tensor:
    """The same values one element into a buffer, where no 16-byte access is aligned."""
    moved = values.new_zeros(values.numel() + 1)[1:].view(values.shape).copy_(values)
    assert moved.data_ptr() % 16 == values.element_size()
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("which", ["x", "raw", "gradient", "all"])
def test_memory_off_by_one_element(backend, device, which, dtype):
    """A vector access there would be an error of the device, which the emulation can only predict."""
    made = {"x": (64, 256), "raw": (64, 512), "gradient": (64, 256)}
    tensors = {name: torch.randn(shape, device=device).to(dtype) for name, shape in made.items()}
    tensors = {name: shifted(t) if which in (name, "all") else t for name, t in tensors.items()}
    x, raw, grad_y = tensors.values()
    x.requires_grad_()
    raw.requires_grad_()
    with fk.backend(backend):
        y, log_det = fk.affine_coupling(x, raw, form=TANH)
        grads = torch.autograd.grad(y, (x, raw), grad_y)
    exact_x, exact_raw, exact_grad_y = (t.detach().double() for t in (x, raw, grad_y))
    exact = reference.forward(exact_x, exact_raw, None, None, None, TANH, 0, False)
    exact_grads = reference.backward(exact_grad_y, None, exact_x, exact_raw, None, None, None, TANH, 0, False)
    assert error(y, exact[0]) <= tolerance(dtype)
    assert error(log_det, exact[1]) <= tolerance(log_det.dtype, 256)
    for grad, truth in zip(grads, exact_grads):
        assert error(grad, truth) <= tolerance(dtype)


@pytest.mark.parametrize(
    "shape, learned",
    [((4096, 64), False), ((300, 1032), False), ((4, 65536), False), ((2000, 48), True), ((64, 12, 16, 16), True)],
    ids=str,
)
def test_same_bits_every_time(backend, device, shape, learned):
    tensors = leaves(shape, device, learned)
    with fk.backend(backend):
        first = both_ways(tensors)
        assert all(t.isfinite().all() for t in first)
        for run in range(RUNS):
            assert same(both_ways(tensors), first), f"run {run} differs"


@pytest.mark.parametrize("shape", [(4000, 2), (513, 300), (40, 20000)], ids=str)
def test_log_det_of_a_row_does_not_depend_on_the_batch(backend, device, shape):
    x, raw = (t.detach() for t in leaves(shape, device))
    with fk.backend(backend):
        whole = fk.affine_coupling(x, raw, form=TANH)
        part = fk.affine_coupling(x[:7], raw[:7], form=TANH)
    assert same([t[:7] for t in whole], part)
