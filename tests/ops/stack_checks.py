"""What holds for planar and radial flows alike; test_planar.py and test_radial.py call it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import flowkernels as fk
from flowkernels.tolerances import error, tolerance

from .affine_cases import cast
from .stack_cases import Call, inputs, run


def evaluate(call: Call, tensors: dict[str, Tensor], cotangents: tuple[Tensor, Tensor]):
    """y, log_det and the gradients of every tensor."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = run(call, leaves)
    pairs = [(y, g.to(y.dtype)) for y, g in zip(outputs, cotangents) if y.requires_grad]
    grads = torch.autograd.grad([y for y, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True)
    return outputs, dict(zip(leaves, grads))


def compare(backend: str, call: Call, dtype: torch.dtype = torch.float32, guarded=None) -> None:
    """A backend's values and gradients against the float64 reference on the very same rounded inputs."""
    wide = torch.promote_types(dtype, torch.float32)
    tensors = {name: cast(t, dtype if name == "x" else wide) for name, t in inputs(call).items()}
    exact_inputs = {name: cast(t, torch.float64) for name, t in tensors.items()}
    cotangents = (cast(torch.randn_like(exact_inputs["x"]), dtype), torch.randn(call.rows))
    with fk.backend(backend):
        if guarded is None:
            (y, log_det), grads = evaluate(call, tensors, cotangents)
        else:
            with guarded():
                (y, log_det), grads = evaluate(call, tensors, cotangents)
    with fk.backend("reference"):
        (exact_y, exact_log_det), exact = evaluate(call, exact_inputs, cotangents)
    # Every layer rounds what the next one starts from, and every row adds to a sum.
    length = max(1, call.depth) * (1 + call.features)
    assert (y.dtype, log_det.dtype, y.is_contiguous()) == (dtype, wide, True)
    assert error(y, exact_y) <= tolerance(dtype, length)
    assert error(log_det, exact_log_det) <= tolerance(wide, length)
    for name, truth in exact.items():
        if truth is None:
            assert grads[name] is None or (grads[name] == 0).all()
            continue
        assert grads[name].dtype == tensors[name].dtype
        # The output of an inverse, which its gradient is made of, is rounded to x's dtype.
        coarse = dtype if call.inverse or name == "x" else wide
        scale = max(1.0, truth.abs().max().item()) if truth.numel() else 1.0
        summed = length if call.per_example or name == "x" else length * max(1, call.rows)
        assert error(grads[name] / scale, truth / scale) <= 2 * tolerance(coarse, summed), name


def round_trip(backend: str, call: Call, dtype: torch.dtype) -> None:
    """There and back, for a well-conditioned map."""
    tensors = {name: cast(t, dtype) for name, t in inputs(call).items()}
    with fk.backend(backend):
        y, log_det = run(call, tensors)
        back, negative = run(call, {**tensors, "x": y}, inverse=not call.inverse)
    units = 1e3 * math.sqrt(1 + call.depth * call.features)
    assert error(back, tensors["x"]) <= units * tolerance(dtype)
    assert error(negative, -log_det) <= units * tolerance(dtype)


def log_det_is_that_of_the_jacobian(backend: str, call: Call) -> None:
    """One row's log_det against the determinant that autograd finds."""
    tensors = inputs(call)
    first = {name: t[:1] if name == "x" or call.per_example else t for name, t in tensors.items()}
    with fk.backend(backend):
        jacobian = torch.autograd.functional.jacobian(lambda x: run(call, {**first, "x": x})[0][0], first["x"])
        log_det = run(call, first)[1]
    assert error(log_det[0], torch.linalg.slogdet(jacobian[:, 0])[1]) <= 1e4 * tolerance(torch.float64)


def rows_do_not_depend_on_the_batch(backend: str, op: str) -> None:
    """The same bits for a row alone and among others, also where the others want many more Newton steps."""
    for inverse in (False, True):
        call = Call(op, rows=131, features=5, depth=6, inverse=inverse)
        tensors = {name: t.float() for name, t in inputs(call).items()}
        tensors["x"] *= torch.logspace(-6, 2, 131)[:, None]
        with fk.backend(backend):
            y, log_det = run(call, tensors)
            for row in (0, 63, 64, 130):
                alone = run(call, {**tensors, "x": tensors["x"][row : row + 1]})
                assert torch.equal(alone[0][0], y[row])
                assert torch.equal(alone[1][0], log_det[row])


def gradients_are_the_same_from_run_to_run(backend: str, op: str) -> None:
    """Sums over the batch have a fixed order."""
    call = Call(op, rows=1500, features=3, depth=5)
    tensors = {name: t.float() for name, t in inputs(call).items()}
    cotangents = (torch.randn(1500, 3), torch.randn(1500))
    with fk.backend(backend):
        runs = [evaluate(call, tensors, cotangents)[1] for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(other[name], runs[0][name]) for name in other)
