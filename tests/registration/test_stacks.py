"""Planar and radial flows as torch operators: gradients of any order, compile, export, transforms."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import flowkernels as fk
from flowkernels import backends
from flowkernels.tolerances import error, tolerance

from ..ops.stack_cases import NAMES, REFERENCES, Call, inputs, run, small

OPS = ("planar", "radial")
TINY = [
    Call(op, rows=2, features=2, depth=2, inverse=inverse, per_example=per_example)
    for op in OPS
    for inverse in (False, True)
    for per_example in (False, True)
] + [Call("planar", rows=2, features=2, depth=2, activation="leaky_relu", inverse=i) for i in (False, True)]


def named(call: Call) -> str:
    return f"{call.op}-{call}"


def leaves(call: Call) -> list[torch.Tensor]:
    return [t.requires_grad_() for t in inputs(call).values()]


def function(call: Call):
    return lambda *tensors: run(call, dict(zip(("x", *NAMES[call.op]), tensors)))


@pytest.mark.parametrize("call", TINY, ids=named)
def test_gradients_to_second_order(backend, call):
    with fk.backend(backend):
        assert gradcheck(function(call), leaves(call))
        assert gradgradcheck(function(call), leaves(call))


@pytest.mark.parametrize("call", [c for c in TINY if not c.per_example], ids=named)
def test_third_order(backend, call):
    def second(*tensors):
        y, log_det = function(call)(*tensors)
        first = torch.autograd.grad(y.sin().sum() + log_det.cos().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), tensors, create_graph=True)

    with fk.backend(backend):
        assert gradcheck(second, leaves(call), atol=1e-4)


@pytest.mark.parametrize("call", small("planar") + small("radial"), ids=named)
def test_the_written_backward_is_that_of_the_written_forward(call):
    """reference.backward against autograd of reference.forward, which for an inverse is that of Newton's steps."""
    reference, options = REFERENCES[call.op], tuple(call.options.values())
    needed = leaves(call)
    outputs = reference.forward(*needed, *options)
    cotangents = [torch.randn_like(y) for y in outputs]
    expected = torch.autograd.grad(outputs, needed, cotangents, allow_unused=True)
    got = reference.backward(*cotangents, *reference.saved(needed, outputs, options), *options)
    for value, exact in zip(got, expected, strict=True):
        assert exact is None or error(value, exact) <= 1e4 * tolerance(torch.float64)


OPCHECK = [
    Call(op, inverse=inverse, per_example=per_example, **shape)
    for op in OPS
    for inverse, per_example in ((False, False), (True, True))
    for shape in ({}, {"rows": 0}, {"depth": 0}, {"rows": 1, "features": 1}, {"strides": "transposed"})
]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("call", OPCHECK, ids=named)
def test_opcheck(backend, call, grad):
    tensors = [t.requires_grad_(grad) for t in inputs(call).values()]
    number, options = backends.NAMES.index(backend), tuple(call.options.values())
    forward = getattr(torch.ops.flowkernels, call.op).default
    torch.library.opcheck(forward, (*tensors, *options, number))
    outputs = forward(*tensors, *options, number)
    saved = REFERENCES[call.op].saved(tensors, outputs, options)
    grads = [torch.randn_like(y).requires_grad_(grad) for y in outputs]
    saved = [t.detach().requires_grad_(grad) for t in saved]
    backward = getattr(torch.ops.flowkernels, call.op + "_backward").default
    torch.library.opcheck(backward, (*grads, *saved, (True,) * 4, *options, number))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_compile_whole_graph_over_sizes(backend, op, inverse):
    """One graph, dynamic: a second batch size compiles nothing new."""
    call = Call(op, inverse=inverse, features=4)

    def step(*tensors):
        y, log_det = function(call)(*tensors)
        return (y.square().sum(1) - log_det).mean()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    frames, (_, *parameters) = [], inputs(call).values()
    with fk.backend(backend):
        for rows in (5, 9, 17):
            tensors = (torch.randn(rows, 4, dtype=torch.float64), *parameters)
            plain = [t.clone().requires_grad_() for t in tensors]
            traced = [t.clone().requires_grad_() for t in tensors]
            expected, value = step(*plain), compiled(*traced)
            expected.backward()
            value.backward()
            assert torch.allclose(value, expected)
            assert all(torch.allclose(a.grad, b.grad) for a, b in zip(traced, plain))
            frames.append(counter.frame_count)
    assert len(set(frames)) == 1


@pytest.mark.parametrize("call", [c for c in TINY if c.activation == "tanh"], ids=named)
def test_transforms_agree_with_autograd(backend, call):
    x, *parameters = inputs(call).values()
    first = parameters[0]

    def loss(x, first):
        y, log_det = function(call)(x, first, *parameters[1:])
        return (y**2).sum() + log_det.sum()

    with fk.backend(backend):
        expected = torch.autograd.functional.jacobian(loss, (x, first))
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            for got, exact in zip(transform(loss, (0, 1))(x, first), expected):
                assert torch.allclose(got, exact)
        hessian = torch.autograd.functional.hessian(loss, (x, first))
        for row, exact_row in zip(torch.func.hessian(loss, (0, 1))(x, first), hessian):
            for got, exact in zip(row, exact_row):
                assert torch.allclose(got, exact)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            tangent = torch.autograd.forward_ad.unpack_dual(loss(dual, first)).tangent
        assert torch.allclose(tangent, expected[0].sum())


@pytest.mark.parametrize("op", OPS)
def test_vmap_over_the_gradient_of_one_row(backend, op):
    call = Call(op, inverse=True)
    x, *parameters = inputs(call).values()

    def one(row):
        y, log_det = function(call)(row[None], *parameters)
        return (y**2).sum() + log_det.sum()

    with fk.backend(backend):
        (expected,) = torch.autograd.grad(sum(one(row) for row in x.requires_grad_()), x)
        assert torch.allclose(torch.func.vmap(torch.func.grad(one))(x.detach()), expected)


@pytest.mark.parametrize("op", OPS)
def test_batched_gradients(backend, op):
    """vmap over a backward pass, whose tensors look ordinary and have no memory."""
    call = Call(op, rows=2)
    x, *parameters = inputs(call).values()

    def outputs(x):
        return torch.cat([t.flatten() for t in function(call)(x, *parameters)])

    with fk.backend(backend):
        expected = torch.autograd.functional.jacobian(outputs, x)
        assert torch.allclose(torch.autograd.functional.jacobian(outputs, x, vectorize=True), expected)


@pytest.mark.parametrize("op", OPS)
def test_export_with_a_dynamic_batch(backend, op):
    call = Call(op, features=3)
    x, *parameters = (t.float() for t in inputs(call).values())

    class Stack(torch.nn.Module):
        def forward(self, x):
            return function(call)(x, *parameters)

    batch = torch.export.Dim("batch", min=1, max=1024)
    with fk.backend(backend):
        program = torch.export.export(Stack(), (x,), dynamic_shapes={"x": {0: batch}})
        x = torch.randn(9, 3)
        for got, expected in zip(program.module()(x), Stack()(x)):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(backend, op, reentrant):
    call = Call(op)
    results = []
    given = inputs(call).values()
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)):
        tensors = [t.clone().requires_grad_() for t in given]
        with fk.backend(backend):
            y, log_det = wrap(function(call), *tensors)
            (y.square().sum() + log_det.sum()).backward()
        results.append([t.grad for t in tensors])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("call", TINY, ids=named)
def test_gradient_of_one_output_alone_and_of_some_inputs(backend, call):
    given = inputs(call)
    with fk.backend(backend):
        tensors = [t.clone().requires_grad_() for t in given.values()]
        outputs = function(call)(*tensors)
        for output in outputs:
            whole = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
            for i in range(4):
                some = [t.clone().requires_grad_(i == j) for j, t in enumerate(given.values())]
                index = 0 if output is outputs[0] else 1
                (grad,) = torch.autograd.grad(function(call)(*some)[index].sum(), some[i])
                assert torch.allclose(grad, whole[i])


@pytest.mark.parametrize("op", OPS)
def test_autocast_leaves_the_parameters_in_float32(backend, op):
    call = Call(op)
    x, *parameters = (t.float() for t in inputs(call).values())
    parameters = [p.requires_grad_() for p in parameters]
    linear = torch.nn.Linear(3, 3)
    with fk.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = function(call)(linear(x), *parameters)
        (y.float().sum() + log_det.sum()).backward()
    assert (y.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in parameters)
    assert linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("op", OPS)
def test_memory_that_holds_the_negative(backend, op):
    call = Call(op)
    _, *parameters = (t.float() for t in inputs(call).values())
    negated = torch.imag(torch.randn(5, 3, dtype=torch.cfloat).conj())
    assert negated.is_neg()
    with fk.backend(backend):
        for got, expected in zip(function(call)(negated, *parameters), function(call)(negated.clone(), *parameters)):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("op", OPS)
def test_parameters_in_half_precision_get_their_gradient_back(backend, op):
    call = Call(op)
    x, *parameters = (t.float() for t in inputs(call).values())
    halves = [p.bfloat16().requires_grad_() for p in parameters]
    with fk.backend(backend):
        y, log_det = function(call)(x, *halves)
        (y.sum() + log_det.sum()).backward()
        exact = function(call)(x, *(p.detach().float() for p in halves))
    assert torch.equal(y, exact[0])
    assert all(p.grad.dtype == torch.bfloat16 for p in halves)
