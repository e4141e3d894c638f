"""What only large stacks reach in Triton, with limits so small that little ones do: segments of layers, programs with
several tiles, and parameters that a launch of their own prepares."""

from __future__ import annotations

import pytest
import torch

from flowkernels import backends
from flowkernels.ops import stack

pytest.importorskip("triton", reason="no triton here")
from flowkernels.ops import triton_stack

from . import stack_checks
from .stack_cases import Call

if not backends.interpreting():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

ops = pytest.mark.parametrize("op", ["planar", "radial"])


@pytest.fixture(autouse=True)
def forget_plans(monkeypatch):
    """Plans remember the limits that they were made under."""
    monkeypatch.setattr(stack, "plans", {})


@ops
@pytest.mark.parametrize("depth, segment", [(2, 2), (5, 3), (7, 3), (9, 3)])
def test_segments_of_layers(monkeypatch, guarded, op, depth, segment):
    monkeypatch.setattr(triton_stack, "_WORKSPACE", 1)
    assert triton_stack.segments(depth, 4096, 1)[0] == segment
    stack_checks.compare("triton", Call(op, rows=67, features=8, depth=depth), guarded=guarded)


@ops
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("rows", [64 * 5 + 3, 64 * 6])
def test_programs_with_several_tiles(monkeypatch, guarded, op, inverse, rows):
    monkeypatch.setattr(triton_stack, "_MOST_PROGRAMS", 2)
    stack_checks.compare("triton", Call(op, rows=rows, features=8, depth=2, inverse=inverse), guarded=guarded)


@pytest.mark.parametrize("inverse", [False, True])
def test_prepared_parameters(monkeypatch, guarded, inverse):
    monkeypatch.setattr(triton_stack, "_PREPARED", 0)
    stack_checks.compare("triton", Call("planar", inverse=inverse), guarded=guarded)


@ops
@pytest.mark.parametrize("inverse", [False, True])
def test_rows_too_long_for_a_program(monkeypatch, guarded, op, inverse):
    monkeypatch.setattr(triton_stack, "_WIDEST", 8)
    stack_checks.compare("triton", Call(op, inverse=inverse), guarded=guarded)


def test_layers_that_move_points_far_are_not_undone_by_subtraction():
    """û is 1e6 in the first layer, and its input of size 1 is needed again for the gradient of w."""
    call = Call("planar", rows=5, features=2, depth=2)
    x = torch.randn(5, 2)
    u, w = torch.tensor([[1e6, 1e6], [0.3, 0.1]]), torch.tensor([[1.0, -1.0], [1e-3, 2e-3]])
    tensors = {"x": x, "u": u, "w": w, "b": torch.tensor([0.1, 0.2])}
    cotangents = (torch.randn(5, 2), torch.randn(5))
    grads = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        with stack_checks.fk.backend(backend):
            made = {name: t.to(dtype) for name, t in tensors.items()}
            grads[backend] = stack_checks.evaluate(call, made, cotangents)[1]
    for name in tensors:
        torch.testing.assert_close(grads["triton"][name].double(), grads["reference"][name], rtol=1e-4, atol=1e-4)
