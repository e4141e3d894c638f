"""Dequantization, the log-density of split and splines as operators: gradients of any order, compile, transforms."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import flowkernels as fk
from flowkernels import backends
from flowkernels.ops.dequantize import reference as dequantize_reference
from flowkernels.ops.rational_quadratic_spline import reference as spline_reference
from flowkernels.ops.split import reference as split_reference

EVENTS = [(3,), (2, 2, 2)]


def dequantize(noise):
    x = (torch.arange(noise[0].numel()).reshape(noise.shape[1:]) % 17).expand(noise.shape)
    return fk.dequantize(x, noise, levels=17, alpha=0.05)


def log_normal(value, *prior):
    return (fk.log_normal(value, *prior),)


def noise(rows, event):
    return (0.05 + 0.9 * torch.rand(rows, *event, dtype=torch.float64),)


def normal(count):
    return lambda rows, event: tuple(torch.randn(rows, *event, dtype=torch.float64) for _ in range(count))


TRAILING = "trailing_widths_heights_derivatives"
SPLINES = {
    "spline": fk.SplineForm(3, 2.0, layout=TRAILING),
    "circular spline": fk.SplineForm(2, 2.0, tails="circular", layout=TRAILING),
    "spline in its own box": dataclasses.replace(fk.SplineForm.freia(2), layout=TRAILING, bound=None),
}


def spline(form, inverse):
    return lambda x, raw: fk.rational_quadratic_spline(x, raw, form=form, inverse=inverse)


def splines(form):
    return lambda rows, event: (
        torch.randn(rows, *event, dtype=torch.float64),
        0.5 * torch.randn(rows, *event, form.parameters, dtype=torch.float64),
    )


CALLS = {
    "dequantize": (dequantize, noise),
    "standard": (log_normal, normal(1)),
    "mean": (log_normal, normal(2)),
    "both": (log_normal, normal(3)),
    "log_std": (lambda value, log_std: (fk.log_normal(value, None, log_std),), normal(2)),
    **{name: (spline(form, False), splines(form)) for name, form in SPLINES.items()},
    **{f"{name}, inverse": (spline(form, True), splines(form)) for name, form in SPLINES.items()},
}
every_call = pytest.mark.parametrize("name", CALLS)


def made(name, rows=3, event=(3,), grad=True):
    function, make = CALLS[name]
    return function, [t.requires_grad_(grad) for t in make(rows, event)]


def total(outputs):
    return sum((1 + i) * t.sin().sum() for i, t in enumerate(outputs))


@pytest.mark.parametrize("event", EVENTS, ids=str)
@every_call
def test_gradients_to_third_order(backend, name, event):
    function, leaves = made(name, 2, event)

    def second(*tensors):
        first = torch.autograd.grad(total(function(*tensors)), tensors, create_graph=True)
        return torch.autograd.grad(total(first), tensors, create_graph=True)

    with fk.backend(backend):
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves)
        assert gradcheck(second, leaves, atol=1e-4)


@every_call
def test_the_written_backward_is_that_of_the_written_forward(name):
    function, leaves = made(name, 4, (2, 3))
    with fk.backend("reference"):
        outputs = function(*leaves)
    cotangents = [torch.randn_like(t) for t in outputs]
    expected = torch.autograd.grad(outputs, leaves, cotangents)
    if "spline" in name:
        inverse, form = name.endswith("inverse"), SPLINES[name.removesuffix(", inverse")]
        x, raw = outputs[0] if inverse else leaves[0], leaves[1]
        got = spline_reference.backward(*cotangents, x, raw, None, form, 0, inverse)[:2]
    elif name == "dequantize":
        got = dequantize_reference.backward(*cotangents, outputs[0], None, 17, 0.05)[:1]
    else:
        value, *prior = leaves
        prior = [None, *prior] if name == "log_std" else [*prior, None, None][:2]
        got = [g for g in split_reference.backward(*cotangents, value, *prior) if g is not None]
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("rows", [0, 3])
@every_call
def test_opcheck(backend, name, rows, grad):
    _, leaves = made(name, rows, (3, 2), grad)
    number = backends.NAMES.index(backend)
    operators = torch.ops.flowkernels
    if "spline" in name:
        inverse, form = name.endswith("inverse"), SPLINES[name.removesuffix(", inverse")]
        options = (form.spec, 0, inverse, number)
        torch.library.opcheck(operators.rational_quadratic_spline.default, (*leaves, None, *options))
        grads = (torch.randn_like(leaves[0]), torch.randn(rows, dtype=leaves[0].dtype))
        arguments = (*grads, *leaves, None, (True, True, False), *options)
        torch.library.opcheck(operators.rational_quadratic_spline_backward.default, arguments)
        return
    if name == "dequantize":
        x = torch.randint(17, leaves[0].shape).double()
        torch.library.opcheck(operators.dequantize.default, (leaves[0], x, 17, 0.05, number))
        z = torch.randn_like(leaves[0]).requires_grad_(grad)
        grads = (torch.randn_like(z), torch.randn(rows, dtype=z.dtype))
        arguments = (*grads, z, None, (True, False), 17, 0.05, number)
        torch.library.opcheck(operators.dequantize_backward.default, arguments)
        torch.library.opcheck(operators.quantize.default, (z.detach(), 17, 0.05, number))
        return
    value, *prior = leaves
    prior = [None, *prior] if name == "log_std" else [*prior, None, None][:2]
    torch.library.opcheck(operators.split.default, (value, *prior, number))
    wanted = (True, *(p is not None for p in prior))
    arguments = (torch.randn(rows, dtype=value.dtype), value, *prior, wanted, number)
    torch.library.opcheck(operators.split_backward.default, arguments)


@every_call
def test_compile_with_dynamic_shapes(backend, name):
    function, _ = made(name)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *t: total(function(*t)), fullgraph=True, dynamic=True, backend=counter)
    frames = []
    with fk.backend(backend):
        for rows in (5, 9, 17):
            _, leaves = made(name, rows, (4,))
            expected, got = total(function(*leaves)), compiled(*leaves)
            assert torch.allclose(got, expected)
            for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves)):
                assert torch.allclose(a, b)
            frames.append(counter.frame_count)
    assert len(set(frames)) == 1


def test_compiled_quantize(backend):
    compiled = torch.compile(lambda z: fk.quantize(z, levels=17), fullgraph=True, backend="aot_eager")
    z = torch.randn(5, 7)
    with fk.backend(backend):
        assert torch.equal(compiled(z), fk.quantize(z, levels=17))


@every_call
def test_transforms_agree_with_autograd(backend, name):
    function, leaves = made(name, grad=False)
    arguments = tuple(range(len(leaves)))

    def loss(*tensors):
        return total(function(*tensors))

    with fk.backend(backend):
        expected = torch.autograd.functional.jacobian(loss, tuple(leaves))
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            for got, exact in zip(transform(loss, arguments)(*leaves), expected):
                assert torch.allclose(got, exact)
        exact = torch.autograd.functional.hessian(loss, tuple(leaves))
        for row, exact_row in zip(torch.func.hessian(loss, arguments)(*leaves), exact):
            assert all(torch.allclose(a, b) for a, b in zip(row, exact_row))


@pytest.mark.parametrize("name", ["standard", "both"])
def test_vmap_over_the_gradient_of_one_row(backend, name):
    function, leaves = made(name)

    def one(*row):
        return total(function(*(t[None] for t in row)))

    with fk.backend(backend):
        expected = torch.autograd.grad(sum(one(*row) for row in zip(*leaves)), leaves[0])[0]
        rows = [t.detach() for t in leaves]
        assert torch.allclose(torch.func.vmap(torch.func.grad(one))(*rows), expected)


def test_quantize_under_vmap(backend):
    z = torch.randn(4, 3, 5)
    with fk.backend(backend):
        got = torch.func.vmap(lambda row: fk.quantize(row))(z)
        assert torch.equal(got, fk.quantize(z))


@every_call
def test_batched_gradients(backend, name):
    """vmap over a backward pass, whose tensors look ordinary and have no memory."""
    function, leaves = made(name, 2, grad=False)

    def outputs(first):
        return torch.cat([t.flatten() for t in function(first, *leaves[1:])])

    with fk.backend(backend):
        expected = torch.autograd.functional.jacobian(outputs, leaves[0])
        assert torch.allclose(torch.autograd.functional.jacobian(outputs, leaves[0], vectorize=True), expected)


@every_call
def test_export_with_a_dynamic_batch(backend, name):
    function, leaves = made(name, grad=False)

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    batch = torch.export.Dim("batch", min=1, max=1024)
    with fk.backend(backend):
        shapes = {"tensors": tuple({0: batch} for _ in leaves)}
        program = torch.export.export(Module(), tuple(leaves), dynamic_shapes=shapes)
        _, larger = made(name, 9, grad=False)
        for got, expected in zip(program.module()(*larger), function(*larger)):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@every_call
def test_checkpointing(backend, name, reentrant):
    function, given = made(name, grad=False)
    results = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant)):
        leaves = [t.clone().requires_grad_() for t in given]
        with fk.backend(backend):
            total(wrap(function, *leaves)).backward()
        results.append([t.grad for t in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@every_call
def test_gradient_of_one_output_alone_and_of_some_inputs(backend, name):
    function, leaves = made(name)
    with fk.backend(backend):
        for index in range(len(function(*leaves))):
            whole = torch.autograd.grad(function(*leaves)[index].sum(), leaves)
            for i in range(len(leaves)):
                some = [t.detach().requires_grad_(i == j) for j, t in enumerate(leaves)]
                (grad,) = torch.autograd.grad(function(*some)[index].sum(), some[i])
                assert torch.allclose(grad, whole[i])


def test_the_numbers_have_no_gradient(backend):
    x = torch.randint(256, (3, 4)).float().requires_grad_()
    u = torch.rand(3, 4, requires_grad=True)
    with fk.backend(backend):
        z, log_det = fk.dequantize(x, u)
        (z.sum() + log_det.sum()).backward()
        assert not fk.quantize(z).requires_grad
    assert x.grad is None
    assert u.grad.isfinite().all()


@every_call
def test_autocast(backend, name):
    function, leaves = made(name, 4, (6,), grad=False)
    linear = torch.nn.Linear(6, 6)
    others = [t.float() for t in leaves[1:]]
    with fk.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        first = torch.sigmoid(linear(leaves[0].float()))
        outputs = function(first, *others)
        sum(t.float().sum() for t in outputs).backward()
    assert outputs[-1].dtype == torch.float32
    assert linear.weight.grad.isfinite().all()
    assert linear.weight.grad.abs().sum() > 0
