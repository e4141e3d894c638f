"""What an accelerated layer owes to the library's: values, gradients, shapes, state and the generator."""

import copy
import types

import pytest
import torch

from flowkernels.integrations import accelerate, core
from flowkernels.ops import perceptron
from flowkernels.tolerances import error, tolerance


def tensors(value):
    """The tensors in what a layer returned, which may be nested; numbers are their own."""
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    return [value if isinstance(value, torch.Tensor) else torch.tensor(value)]


def run(model, method, inputs):
    """Outputs of a method and the gradients of inputs and parameters, after a fixed loss."""
    torch.manual_seed(1)
    leaves = [t.clone().requires_grad_() for t in inputs]
    function = model if method == "forward" else getattr(model, method)
    outputs = tensors(function(leaves if len(leaves) > 1 else leaves[0]))
    loss = sum((t.double() * torch.linspace(0.5, 1.5, max(1, t.numel())).view(t.shape)).sin().sum() for t in outputs)
    wanted = [*leaves, *(p for p in model.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    for leaf, given in zip(leaves, inputs):
        assert torch.equal(leaf, given), "an input was changed"
    return outputs, [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted)], torch.get_rng_state()


def compare(theirs, ours, inputs, method, exact):
    """One method in float64 against the library, and in float32 against the library in float64."""
    for dtype in (torch.float64, torch.float32):
        cast = [t.to(dtype) for t in inputs]
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        values, grads, generator = run(theirs, method, cast)
        own_values, own_grads, own_generator = run(ours, method, cast)
        assert torch.equal(generator, own_generator), "the generator was used otherwise"
        assert [(t.shape, t.dtype) for t in values] == [(t.shape, t.dtype) for t in own_values]
        if dtype == torch.float64:
            truth = [*values, *grads]
        for expected, found, true in zip([*values, *grads], [*own_values, *own_grads], truth):
            if not true.is_floating_point():
                assert torch.equal(found, true)
                continue
            allowed = tolerance(found.dtype if exact else torch.float32, 64 * inputs[0].numel())
            assert error(found, true) <= max(allowed, 4 * error(expected, true)), (method, dtype)


@pytest.fixture
def in_one_call():
    """What layers' networks return as perceptrons in one call; None where they were called."""
    found = []

    def run(net, x):
        found.append(perceptron.run(net, x))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "perceptron", types.SimpleNamespace(run=run))
        yield found


@pytest.fixture
def check_parity():
    """An accelerated copy does what the module does; returns its report.

    exact=False: the library rounds some numbers to float32 whatever it is given, and is no more exact than that.
    """

    def check(module, *inputs, methods=("forward", "inverse"), replaced=None, exact=True):
        ours = copy.deepcopy(module)
        keys = list(ours.state_dict())
        own = [id(p) for p in ours.parameters()]
        report = accelerate(ours)
        assert report.model is ours
        assert list(ours.state_dict()) == keys
        assert [id(p) for p in ours.parameters()] == own
        assert isinstance(ours, type(module))
        if replaced is not None:
            assert len(report.replaced) == replaced, str(report)
        else:
            assert report.replaced, str(report)
        for method in methods:
            compare(module, ours, inputs, method, exact)
        ours.load_state_dict(module.state_dict(), strict=True)
        return report

    return check
