"""Planar and radial flows on the device: the cases of tests/ops, stacks of every size, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk

from ..ops import stack_checks
from ..ops.stack_cases import Call, calls, inputs, run
from .calls import same

pytestmark = pytest.mark.gpu

OPS = ("planar", "radial")
RUNS = 30
# A thread, lanes, a warp and a block for a row; one segment and several; a table; more rows than sums of blocks.
SIZES = ((4096, 2, 32), (513, 40, 80), (1000, 256, 5), (300, 600, 17), (70, 4096, 4), (100000, 8, 3))
VARIANTS = [
    Call(op, *size, inverse=inverse, per_example=per_example)
    for op in OPS
    for size in SIZES
    for inverse in (False, True)
    for per_example in (False, True)
    if not per_example or size[0] * size[1] * size[2] < 2**24
]


@pytest.fixture(autouse=True)
def _on_the_device(device):
    """Cases are made on the default device."""
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("call", [c for op in OPS for c in calls(op)], ids=lambda c: f"{c.op}-{c}")
def test_values_and_gradients(backend, call):
    stack_checks.compare(backend, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", VARIANTS, ids=lambda c: f"{c.op}-{c}")
def test_sizes(backend, call, dtype):
    stack_checks.compare(backend, call, dtype)


@pytest.mark.parametrize("call", VARIANTS[::3], ids=lambda c: f"{c.op}-{c}")
def test_same_bits_every_time(backend, call):
    tensors = {name: t.float().requires_grad_() for name, t in inputs(call).items()}

    def both_ways():
        y, log_det = run(call, tensors)
        return y, log_det, *torch.autograd.grad(y.square().sum() / 2 + log_det.sum(), list(tensors.values()))

    with fk.backend(backend):
        first = both_ways()
        assert all(t.isfinite().all() for t in first)
        for number in range(RUNS):
            assert same(both_ways(), first), f"run {number} differs"
