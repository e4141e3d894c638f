"""Activation normalisation, by torch's batch normalisation and by the compiled module, against its formula."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import flowkernels as fk
from flowkernels.ops.layout import memory_format
from flowkernels.tolerances import error, tolerance

from .affine_cases import cast, strided

SHAPES = [(4, 3), (5, 2, 3), (2, 4, 5, 6), (1, 1, 1, 1), (0, 3, 2, 2), (3, 2, 2, 2, 2)]


def formula(x, log_scale, shift, inverse):
    log_scale, shift = (t.reshape(-1, *(1,) * (x.dim() - 2)) for t in (log_scale, shift))
    y = (x - shift) * (-log_scale).exp() if inverse else x * log_scale.exp() + shift
    total = log_scale.expand(x.shape[1:]).sum().expand(x.shape[0])
    return y, -total if inverse else total


def inputs(shape, dtype=torch.float64):
    x, log_scale, shift = torch.randn(shape), 0.5 * torch.randn(shape[1]), torch.randn(shape[1])
    wide = torch.promote_types(dtype, torch.float32)
    return cast(x.double(), dtype), log_scale.to(wide), shift.to(wide)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, inverse):
    x, *parameters = inputs(shape, dtype)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    outputs, exact = fk.actnorm(*leaves, inverse=inverse), formula(*exact_leaves, inverse)
    cotangents = [torch.randn_like(t) for t in outputs]
    wide = torch.promote_types(dtype, torch.float32)
    assert (outputs[0].dtype, outputs[1].dtype) == (dtype, wide)
    terms = max(1, x.numel())
    for got, truth in zip(outputs, exact):
        assert error(got, truth) <= tolerance(got.dtype, terms)
    grads = torch.autograd.grad(outputs, leaves, cotangents)
    truths = torch.autograd.grad(exact, exact_leaves, [g.double() for g in cotangents])
    for got, truth in zip(grads, truths):
        assert error(got, truth) <= 4 * tolerance(dtype, terms)


@pytest.mark.parametrize("how", ["channels_last", "slice", "transposed", "expanded"])
def test_layouts(how):
    x, log_scale, shift = inputs((3, 4, 6, 8))
    y, _ = fk.actnorm(strided(x, how), log_scale, shift)
    assert torch.allclose(y, formula(strided(x, how), log_scale, shift, False)[0])
    if how == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("inverse", [False, True])
def test_derivatives_transforms_and_compile(inverse):
    leaves = [t.requires_grad_() for t in inputs((3, 2, 2, 2))]

    def function(*tensors):
        return fk.actnorm(*tensors, inverse=inverse)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)

    def loss(*tensors):
        y, log_det = function(*tensors)
        return y.sin().sum() + log_det.sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    for got in (
        torch.func.jacrev(loss, (0, 1, 2))(*leaves),
        torch.func.jacfwd(loss, (0, 1, 2))(*leaves),
        torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves),
    ):
        assert all(torch.allclose(a, b) for a, b in zip(got, expected))


# Few channels, of which several rows are taken at a time, at last fewer; many; parts of the batch; long rows.
COMPILED = [(130, 3), (1000, 64), (40000, 2), (3, 200), (70, 5, 30, 20), (1, 2, 90, 70), (300, 1, 7, 7), (6, 70, 4, 4)]
COMPILED += [(70, 2500), (5, 1024)]


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "half of the channels", "every second row"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", COMPILED, ids=str)
def test_the_compiled_module_against_torch(shape, inverse, how):
    x, *parameters = (t.float() for t in inputs((2 * shape[0], 2 * shape[1], *shape[2:])))
    x = x[::2] if how.startswith("every") else x[: shape[0]].clone()
    x = x[:, shape[1] :] if how.startswith("half") else x[:, : shape[1]].clone() if how != "every second row" else x
    if how == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = [t.detach().requires_grad_() for t in (x, *(p[: x.shape[1]] for p in parameters))]
    outputs = fk.actnorm(*leaves, inverse=inverse)
    assert "_Function" in outputs[0].grad_fn.name()
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact = formula(*exact_leaves, inverse)
    cotangents = [torch.randn_like(t) for t in outputs]
    found = torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)
    truths = torch.autograd.grad(exact, exact_leaves, [g.double() for g in cotangents])
    for got, truth in zip((*outputs, *found), (*exact, *truths)):
        assert error(got, truth) <= tolerance(torch.float32, x.numel() // x.shape[1])
    assert outputs[0].is_contiguous(memory_format=memory_format(x))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    again = torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_of_some_and_of_many_at_once(inverse):
    x, log_scale, shift = (t.requires_grad_() for t in inputs((5, 3, 2, 2)))
    y, log_det = fk.actnorm(x.detach(), log_scale, shift, inverse=inverse)
    of_log_scale, of_shift = torch.autograd.grad(y.sum() + 2 * log_det.sum(), (log_scale, shift), retain_graph=True)
    exact = formula(x.detach(), log_scale, shift, inverse)
    expected = torch.autograd.grad(exact[0].sum() + 2 * exact[1].sum(), (log_scale, shift))
    torch.testing.assert_close((of_log_scale, of_shift), expected)
    (alone,) = torch.autograd.grad(log_det.sum(), log_scale, retain_graph=True)
    assert torch.equal(alone, torch.full((3,), -20.0 if inverse else 20.0).double())
    many = torch.stack([torch.zeros_like(log_det), torch.ones_like(log_det)])
    (batch,) = torch.autograd.grad(log_det, log_scale, many, is_grads_batched=True)
    assert torch.equal(batch, torch.stack([torch.zeros_like(alone), alone]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 5), (1, 3, 5, 1), (1, 3, 4, 6), (2, 2, 1, 2)], ids=str)
def test_channels_last_with_strides_that_torch_would_not_choose(shape, backend):
    x, *parameters = inputs(shape)
    odd = {1: (1, 1, shape[1] * shape[3], shape[1]), 2: (4, 1, 1, 2)}[shape[0]]
    x = torch.empty_strided(shape, odd, dtype=x.dtype).copy_(x)
    assert memory_format(x) is torch.channels_last
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    with fk.backend(backend):
        outputs = fk.actnorm(*leaves)
    cotangents = [torch.randn_like(t, memory_format=torch.contiguous_format) for t in outputs]
    found = torch.autograd.grad(outputs, leaves, cotangents)
    torch.testing.assert_close(found, torch.autograd.grad(formula(*leaves, False), leaves, cotangents))


def test_log_det_requires_a_gradient_where_log_scale_does():
    x, log_scale, shift = inputs((5, 3))
    y, log_det = fk.actnorm(x.requires_grad_(), log_scale, shift)
    assert y.requires_grad
    assert not log_det.requires_grad
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], log_scale.exp().expand(5, 3))
    assert fk.actnorm(x, log_scale.requires_grad_(), shift)[1].requires_grad


def test_tangents_of_gradients():
    x, log_scale, shift = (t.requires_grad_() for t in inputs((5, 3)))
    y, _ = fk.actnorm(x, log_scale, shift)
    grad, tangent = torch.randn(2, 5, 3).double()
    with forward_ad.dual_level():
        (of_x,) = torch.autograd.grad(y, x, forward_ad.make_dual(grad, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(of_x).tangent, tangent * log_scale.exp())


def test_round_trip():
    x, log_scale, shift = (t.float() for t in inputs((8, 3, 4, 4)))
    y, log_det = fk.actnorm(x, log_scale, shift)
    back, negative = fk.actnorm(y, log_scale, shift, inverse=True)
    assert error(back, x) <= 4 * tolerance(torch.float32)
    assert torch.equal(negative, -log_det)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"x": torch.zeros(3)}, r"x must have shape \(B, C, ...\); got \(3,\)"),
        ({"log_scale": torch.zeros(4)}, r"log_scale must have shape \(3,\), one number per channel; got \(4,\)"),
        ({"shift": torch.zeros(3, 1, 1)}, r"shift must have shape \(3,\).*got \(3, 1, 1\)"),
        ({"shift": torch.zeros(3).double()}, r"shift has dtype float64 and x has torch.float32"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, r"x must be floating point; got torch.int64"),
        ({"shift": torch.zeros(3, device="meta")}, r"shift is on meta and x on cpu; they must be on one device"),
        ({"inverse": 1}, r"inverse must be True or False; got 1"),
        ({"log_scale": None}, r"log_scale must be a tensor; got NoneType"),
    ],
)
def test_bad_arguments(change, problem):
    arguments = {"x": torch.zeros(2, 3), "log_scale": torch.zeros(3), "shift": torch.zeros(3), **change}
    with pytest.raises((TypeError, ValueError), match=problem):
        fk.actnorm(**arguments)
