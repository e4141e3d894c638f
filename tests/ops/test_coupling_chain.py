"""Chains of affine couplings with perceptrons against the same in torch's own functions."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import flowkernels as fk
from flowkernels.ops import coupling_chain
from flowkernels.ops.coupling_chain import Step
from flowkernels.tolerances import error, tolerance

FORMS = [
    fk.AffineForm.normflows("exp"),
    fk.AffineForm.normflows("sigmoid"),
    fk.AffineForm("tanh", bound=2.0),
    fk.AffineForm("additive"),
]


def parameters_of(*sizes):
    torch.manual_seed(0)
    shapes = [shape for a, b in itertools.pairwise(sizes) for shape in ((b, a), (b,))]
    return [(0.3 * torch.randn(shape)).requires_grad_() for shape in shapes]


def chain(form, features=6, layers=3):
    """Couplings that keep the first and the last channels in turn, of networks of several sizes."""
    steps = []
    for i in range(layers):
        passive = features // 2 if i % 2 == 0 else -(features // 2)
        outputs = (features - abs(passive)) * (1 if form.scale == "additive" else 2)
        steps.append(Step(form, passive, parameters_of(abs(passive), *[8 + i] * (i + 1), outputs), 0.1 * i))
    return steps


def exact(steps, inverse, z):
    """The formula in float64, and its leaves: z and the parameters."""
    leaves = [t.detach().double().requires_grad_() for t in (z, *[p for s in steps for p in s.parameters])]
    return coupling_chain._formula(steps, inverse, *leaves), leaves


def leaves_of(steps, z):
    return [z, *[p for step in steps for p in step.parameters]]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("rows", [1, 63, 130])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.scale)
@pytest.mark.parametrize("features", [2, 5, 6])
def test_values_and_gradients_on_cpu(form, rows, inverse, features):
    steps = chain(form, features)
    z = torch.randn(rows, features, requires_grad=True)
    found, true = coupling_chain.run(z, steps, inverse), exact(steps, inverse, z)
    of_y, of_log_det = torch.randn(rows, features), torch.randn(rows)
    grads, true_grads = (
        torch.autograd.grad((y * of_y).sum() + (log_det * of_log_det).sum(), leaves)
        for (y, log_det), leaves in ((found, leaves_of(steps, z)), true)
    )
    for a, b in zip((*found, *grads), (*true[0], *true_grads), strict=True):
        assert a.dtype == torch.float32
        assert error(a, b) < tolerance(torch.float32, 130)


@pytest.mark.parametrize("which", [0, 1], ids=["y", "log_det"])
def test_a_gradient_of_one_output_on_cpu(which):
    steps, z = chain(FORMS[0]), torch.randn(70, 6, requires_grad=True)
    leaves = leaves_of(steps, z)
    found = torch.autograd.grad(coupling_chain.run(z, steps, False)[which].sum(), leaves, allow_unused=True)
    outputs, inputs = exact(steps, False, z)
    true = torch.autograd.grad(outputs[which].sum(), inputs, allow_unused=True)
    for a, b in zip(found, true, strict=True):
        assert error(torch.zeros(()) if a is None else a, torch.zeros(()).double() if b is None else b) < 1e-5


def test_only_what_is_wanted_on_cpu():
    steps, z = chain(FORMS[0]), torch.randn(70, 6)
    frozen, learned = steps[0].parameters[0].requires_grad_(False), steps[1].parameters[1]
    for value in coupling_chain.run(z, steps, False):
        value.sum().backward(retain_graph=True)
    assert z.grad is frozen.grad is None
    assert learned.grad is not None


def test_steps_before_the_first_that_learns_on_cpu():
    steps, z = chain(FORMS[0]), torch.randn(70, 6)
    for parameter in (*steps[0].parameters, *steps[1].parameters):
        parameter.requires_grad_(False)
    y, log_det = coupling_chain.run(z, steps, False)
    found = torch.autograd.grad(y.sum() + log_det.sum(), steps[2].parameters)
    (true_y, true_log_det), leaves = exact(steps, False, z)
    true = torch.autograd.grad(true_y.sum() + true_log_det.sum(), leaves[-len(steps[2].parameters) :])
    for a, b in zip(found, true, strict=True):
        assert error(a, b) < tolerance(torch.float32, 130)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_on_cpu(reentrant):
    steps, z = chain(FORMS[1]), torch.randn(70, 6, requires_grad=True)
    leaves = leaves_of(steps, z)
    y, log_det = coupling_chain.run(z, steps, False)
    (y.sum() + log_det.sum()).backward()
    expected = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    y, log_det = checkpoint(lambda z: coupling_chain.run(z, steps, False), z, use_reentrant=reentrant)
    (y.sum() + log_det.sum()).backward()
    torch.testing.assert_close([leaf.grad for leaf in leaves], expected)


def test_an_output_that_backward_does_not_read_may_change_on_cpu():
    steps, z = chain(FORMS[0]), torch.randn(7, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(coupling_chain.run(z, steps, False)[0].sum() * 2, z)
    y, _ = coupling_chain.run(z, steps, False)
    (found,) = torch.autograd.grad(y.mul_(2).sum(), z)
    torch.testing.assert_close(found, expected)


def test_without_a_graph_on_cpu():
    steps, z = chain(FORMS[1]), torch.randn(70, 6)
    with torch.no_grad():
        y, log_det = coupling_chain.run(z, steps, False)
        back, opposite = coupling_chain.run(y, steps[::-1], True)
    assert not y.requires_grad
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(opposite, -log_det, rtol=1e-4, atol=1e-4)


def test_second_derivatives_on_cpu():
    steps, z = chain(fk.AffineForm("tanh", bound=2.0)), torch.randn(9, 6, requires_grad=True)

    def twice(outputs, inputs):
        first = torch.autograd.grad(outputs[0].square().sum() + outputs[1].sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    found = twice(coupling_chain.run(z, steps, False), leaves_of(steps, z))
    true = twice(*exact(steps, False, z))
    for a, b in zip(found, true, strict=True):
        assert error(a, b) < 1e-4


def test_many_gradients_at_once_on_cpu():
    steps, z = chain(FORMS[0]), torch.randn(5, 6, requires_grad=True)
    y, _ = coupling_chain.run(z, steps, False)
    cotangents = torch.randn(3, 5, 6)
    (found,) = torch.autograd.grad(y, z, cotangents, is_grads_batched=True, retain_graph=True)
    for a, cotangent in zip(found, cotangents, strict=True):
        torch.testing.assert_close(a, torch.autograd.grad(y, z, cotangent, retain_graph=True)[0], rtol=1e-4, atol=1e-5)


def test_tangents_of_gradients_on_cpu():
    steps, z = chain(FORMS[0]), torch.randn(5, 6, requires_grad=True)
    y, _ = coupling_chain.run(z, steps, False)
    g, tangent = torch.randn(2, 5, 6)
    (expected,) = torch.autograd.grad(y, z, tangent, retain_graph=True)  # the gradient is linear in g
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(y, z, forward_ad.make_dual(g, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected, rtol=1e-4, atol=1e-5)


def test_a_changed_parameter_is_noticed_on_cpu():
    steps, z = chain(FORMS[0]), torch.randn(5, 6)
    y, _ = coupling_chain.run(z, steps, False)
    with torch.no_grad():
        steps[1].parameters[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "z",
    [torch.randn(4, 6, dtype=torch.float64), torch.randn(0, 6), torch.randn(4, 6, 2)],
    ids=["double", "none", "3-D"],
)
def test_what_is_left_to_the_layers_on_cpu(z):
    assert coupling_chain.run(z, chain(FORMS[0]), False) is None


def test_raw_of_another_size_is_left_to_the_layers_on_cpu():
    step = Step(FORMS[0], 3, parameters_of(3, 8, 5), 0.0)
    assert coupling_chain.run(torch.randn(4, 6), [step], False) is None


def test_another_backend_is_left_to_the_layers():
    with fk.backend("reference"):
        assert coupling_chain.run(torch.randn(4, 6), chain(FORMS[0]), False) is None
