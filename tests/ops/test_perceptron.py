"""The compiled perceptron of the CPU against torch's own functions."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

import flowkernels as fk
from flowkernels.ops import perceptron
from flowkernels.tolerances import error, tolerance

SIZES = [
    (1, 64, 64, 2),
    (2, 16, 1),
    (3, 5, 7, 4),
    (8, 63, 65, 17),
    (130, 4),
    (1, 1, 1, 1, 1),
    (33, 128, 100),
    (64, 130, 3),
]


def network(sizes, activation=None):
    linear = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    between = [activation or nn.LeakyReLU(0.1) for _ in linear[1:]]
    return nn.Sequential(*(part for pair in zip(linear, between) for part in pair), linear[-1])


# Two layers in each block between the first layer and the last.
RESIDUAL = [(3, 20, 4), (8, 64, 64, 64, 17), (2, 5, 7, 5, 7, 5, 1), (5, 17, 17, 17, 17, 17, 17, 17, 184)]
BOTH = pytest.mark.parametrize("sizes, residual", [((3, 20, 20, 4), False), ((3, 20, 16, 20, 16, 20, 4), True)])


def formula(x, parameters, slope, residual=False):
    layers = [functools.partial(F.linear, weight=w, bias=b) for w, b in zip(parameters[::2], parameters[1::2])]
    activation = functools.partial(F.leaky_relu, negative_slope=slope) if slope else F.relu
    x = layers[0](x)
    if not residual:
        for layer in layers[1:]:
            x = layer(activation(x))
        return x
    for first, second in zip(layers[1:-1:2], layers[2:-1:2]):
        x = x + second(activation(first(activation(x))))
    return layers[-1](x)


def leaves(x, net, dtype=torch.float32):
    """x and the parameters, as leaves of their own."""
    return [t.detach().to(dtype).requires_grad_() for t in (x, *net.parameters())]


def compare(x, net, slope=0.1, g=None, residual=False):
    outputs = []
    for dtype in (torch.float32, torch.float64):
        x_, *parameters = leaves(x, net, dtype)
        y = (perceptron.perceptron if dtype == torch.float32 else formula)(x_, parameters, slope, residual)
        assert y is not None
        cotangent = torch.linspace(-1, 1, y.numel()).view(y.shape) if g is None else g
        outputs.append([y, *torch.autograd.grad(y, [x_, *parameters], cotangent.to(dtype))])
    allowed = tolerance(torch.float32, max(len(x), 130))
    for found, true in zip(*outputs):
        assert found.is_contiguous()
        assert found.dtype == torch.float32
        assert error(found, true) < allowed


@pytest.mark.parametrize("rows", [1, 2, 47, 64, 65, 200, 1030])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_on_cpu(sizes, rows):
    if rows < perceptron.FEW and max(sizes) > perceptron.WIDEST_OF_FEW:
        assert perceptron.run(network(sizes), torch.randn(rows, sizes[0])) is None
    else:
        compare(torch.randn(rows, sizes[0]), network(sizes))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 512])
@pytest.mark.parametrize("sizes", RESIDUAL, ids=str)
def test_residual_values_and_gradients_on_cpu(sizes, rows):
    if rows < perceptron.FEW and max(sizes) > perceptron.WIDEST_OF_FEW:
        assert perceptron.perceptron(torch.randn(rows, 5), [*network(sizes).parameters()], 0.1, True) is None
    else:
        g = torch.linspace(0.5, 1.5, rows * sizes[-1]).view(rows, -1)  # gradients whose sums do not cancel
        compare(torch.randn(rows, sizes[0]), network(sizes), g=g, residual=True)


@BOTH
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, 2.0])
def test_slopes_on_cpu(slope, sizes, residual):
    compare(torch.randn(70, 3), network(sizes), slope, residual=residual)


@pytest.mark.parametrize("sizes", [(3, 5, 5, 4), (3, 5, 5, 6, 4), (3, 4)], ids=str)
def test_layers_that_do_not_add_up_on_cpu(sizes):
    x, parameters = torch.randn(70, 3), [*network(sizes).parameters()]
    assert perceptron.perceptron(x, parameters, 0.1, True) is None
    assert perceptron.perceptron(x, parameters, 0.1) is not None
    with pytest.raises(ValueError, match="do not add up"):
        type(perceptron.native(x, parameters, 0.1))(sizes, 0.1, True)


@pytest.mark.parametrize("residual", [False, True])
def test_layouts_on_cpu(residual):
    net, wide = network((4, 20, 20, 20, 6)), torch.randn(100, 11)
    for x in (wide[:, 3:7], wide[:, ::3], torch.randn(4, 100).t(), wide[::2, 1:5]):
        compare(x, net, residual=residual)
    compare(torch.randn(1, 4).expand(100, 4), net, g=torch.rand(100, 6), residual=residual)  # no sums that cancel
    compare(wide[:, 3:7], net, g=torch.randn(6, 100).t(), residual=residual)
    compare(wide[:, 3:7], net, g=torch.ones(()).expand(100, 6), residual=residual)


@BOTH
@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 5), (6,), (0, 3, 4)], ids=str)
def test_gradients_of_some_inputs_on_cpu(wanted, sizes, residual):
    net, x = network(sizes), torch.randn(70, 3)
    tensors = leaves(x, net)
    for i, t in enumerate(tensors):
        t.requires_grad_(i in wanted)
    loss = [f(tensors[0], tensors[1:], 0.1, residual).sin().sum() for f in (perceptron.perceptron, formula)]
    found, expected = (torch.autograd.grad(value, [tensors[i] for i in wanted]) for value in loss)
    torch.testing.assert_close(found, expected)


def test_no_graph_where_nobody_asks_on_cpu():
    x, *parameters = leaves(torch.randn(70, 3), network((3, 20, 4)))
    with torch.no_grad():
        y = perceptron.perceptron(x, parameters, 0.1)
    assert not y.requires_grad
    assert torch.equal(y, perceptron.perceptron(x, parameters, 0.1))


@pytest.mark.parametrize(
    "sizes, residual", [((3, 6, 5, 2), False), ((3, 2), False), ((3, 6, 2), True), ((3, 4, 3, 4, 5, 4, 2), True)]
)
def test_formula_of_the_gradient_on_cpu(sizes, residual):
    tensors = leaves(torch.randn(5, 3), network(sizes), torch.float64)
    g = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(formula(tensors[0], tensors[1:], 0.1, residual), tensors, g)
    found = perceptron.backward_formula(g, tensors[0], tensors[1:], 0.1, residual)
    torch.testing.assert_close(tuple(found), expected)
    assert torch.autograd.gradcheck(
        lambda g, x, *parameters: tuple(perceptron.backward_formula(g, x, parameters, 0.1, residual)), (g, *tensors)
    )
    assert torch.autograd.gradgradcheck(lambda x, *parameters: formula(x, parameters, 0.1, residual), tensors)


@BOTH
def test_derivatives_of_derivatives_on_cpu(sizes, residual):
    found = []
    for f in (perceptron.perceptron, formula):
        torch.manual_seed(1)
        tensors = leaves(torch.randn(70, 3), network(sizes))
        y = f(tensors[0], tensors[1:], 0.1, residual)
        first = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), tensors, allow_unused=True))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@BOTH
def test_batched_gradients_on_cpu(sizes, residual):
    tensors = leaves(torch.randn(70, 3), network(sizes))
    g = torch.randn(4, 70, 4)
    y = perceptron.perceptron(tensors[0], tensors[1:], 0.1, residual)
    found = torch.autograd.grad(y, tensors, g, is_grads_batched=True, retain_graph=True)
    for i in range(4):
        torch.testing.assert_close(tuple(t[i] for t in found), torch.autograd.grad(y, tensors, g[i], retain_graph=True))


def test_tangents_of_gradients_on_cpu():
    tensors = leaves(torch.randn(70, 3), network((3, 5, 4)))
    y = perceptron.perceptron(tensors[0], tensors[1:], 0.1)
    g, tangent = torch.randn(2, 70, 4)
    (expected,) = torch.autograd.grad(y, tensors[0], tangent, retain_graph=True)  # the gradient is linear in g
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(y, tensors[0], forward_ad.make_dual(g, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rows", [65, 130, 1000, 5000])
def test_same_bits_for_any_number_of_threads_on_cpu(rows, residual):
    net, x, before = network((7, 64, 64, 64, 5)), torch.randn(rows, 7), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = leaves(x, net)
            y = perceptron.perceptron(tensors[0], tensors[1:], 0.0, residual)
            found.append([y, *torch.autograd.grad(y.sin().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@BOTH
@pytest.mark.parametrize("row", [0, 64, 69])
def test_nan_stays_in_its_row_on_cpu(row, sizes, residual):
    net, x = network(sizes), torch.randn(70, 3)
    x[row, 1] = torch.nan
    x_, *parameters = leaves(x, net)
    y = perceptron.perceptron(x_, parameters, 0.0, residual)
    grad_x, *grads = torch.autograd.grad(y.sum(), [x_, *parameters])
    rows = torch.arange(70) == row
    assert torch.equal(y.isnan().all(1), rows)
    assert torch.equal(y.isnan().any(1), rows)
    assert not grad_x[~rows].isnan().any()
    assert grads[0][:, 1].isnan().all()


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("bias", [-torch.inf, torch.nan, -1.0])
@pytest.mark.parametrize("cotangent", [1.0, torch.inf])
def test_units_and_gradients_that_are_not_finite_on_cpu(cotangent, bias, slope):
    net, x = network((1, 3, 2)), torch.ones(70, 1)
    net[0].weight.data = torch.tensor([[1.0], [2.0], [0.5]])
    net[0].bias.data = torch.tensor([0.0, bias, 1.0])
    net[2].weight.data.abs_()
    tensors = leaves(x, net)
    x_, *parameters = tensors
    expected, found = (f(x_, parameters, slope) for f in (formula, perceptron.perceptron))
    grad = torch.full_like(expected, cotangent)
    torch.testing.assert_close(found, expected, equal_nan=True)
    gradients = torch.autograd.grad(expected, tensors, grad)
    for some in torch.autograd.grad(found, tensors, grad), perceptron.backward_formula(grad, x_, parameters, slope):
        torch.testing.assert_close(tuple(some), gradients, equal_nan=True)


def test_infinite_weights_stay_theirs_beyond_the_last_row_on_cpu():
    net, x = network((1, 4, 2)), torch.ones(3, 1)
    net[0].weight.data.fill_(torch.inf)
    tensors = leaves(x, net)
    for f in (perceptron.perceptron, formula):
        (grad,) = torch.autograd.grad(f(tensors[0], tensors[1:], 0.5).sum(), tensors[3:4])
        assert grad.isinf().all()


def test_what_is_left_to_torch_on_cpu():
    net, x = network((3, 20, 4)), torch.randn(70, 3)
    assert perceptron.run(net, x) is not None
    assert perceptron.run(net.double(), x.double()) is None
    net.float()
    for other in (x[:0], x[0], x[None], x.half(), "x"):
        assert perceptron.run(net, other) is None
    with torch.autocast("cpu"):
        assert perceptron.run(net, x) is None
    with fk.backend("reference"):
        assert perceptron.run(net, x) is None
    seen = []
    torch.func.vmap(lambda row: (seen.append(perceptron.run(net, row[None])), row)[1])(x)
    assert seen == [None]
    assert perceptron.run(network((3, 2 * perceptron.WIDEST, 4)), x) is None
    assert perceptron.run(network((3,) * 10), x) is None


def test_networks_that_are_no_perceptrons_on_cpu():
    assert perceptron.read(network((3, 20, 4), nn.ReLU()))[1] == 0
    assert perceptron.read(network((3, 4)))[1] == 1
    assert perceptron.read(network((3, 20, 20, 4), nn.Tanh())) is None
    assert perceptron.read(nn.Sequential(nn.Linear(3, 4, bias=False))) is None
    assert perceptron.read(nn.Sequential(nn.Linear(3, 4), nn.ReLU())) is None
    mixed = network((3, 5, 5, 4))
    mixed[1] = nn.ReLU()
    assert perceptron.read(mixed) is None
    for i in range(3):
        hooked = network((3, 5, 4))
        handle = hooked[i].register_forward_hook(lambda *_: None)
        assert perceptron.read(hooked) is None
        handle.remove()
        assert perceptron.read(hooked) is not None


def test_a_sequential_of_another_kind_is_called_on_cpu():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    net = Residual(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    assert perceptron.read(net) is None


def test_our_own_conditioners_run_it_on_cpu(monkeypatch):
    flow, x = fk.models.nsf(2), torch.randn(70, 2)
    for p in flow.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    expected = flow.double().log_prob(x.double())
    called = []
    original = perceptron.perceptron
    monkeypatch.setattr(perceptron, "perceptron", lambda *a: called.append(1) or original(*a))
    found = flow.float().log_prob(x)
    assert called
    assert error(found, expected) < tolerance(torch.float32, 10_000)
