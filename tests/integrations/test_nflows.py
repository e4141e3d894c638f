"""nflows' transforms, accelerated, against themselves."""

import copy

import pytest
import torch
from torch import nn

from flowkernels.integrations import accelerate
from flowkernels.ops import perceptron

nflows = pytest.importorskip("nflows")
from nflows import distributions, flows, transforms  # noqa: E402
from nflows import nn as nets  # noqa: E402
from nflows.transforms.coupling import AffineCouplingTransform  # noqa: E402
from nflows.transforms.nonlinearities import PiecewiseRationalQuadraticCDF  # noqa: E402

MASKS = {
    "last": [0, 0, 0, 1, 1],
    "first": [1, 1, 0, 0],
    "odd": [0, 1, 0, 1, 0, 1],
    "even": [1, -1, 1, -1],
    "odd number": [0, 1, 0, 1, 0],
    "any": [1, 1, 0, 1, 0, 0],
    "all but one": [0, 1, 1],
}
ALL_MASKS = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
IMAGES = pytest.mark.parametrize("images", [False, True], ids=["vectors", "images"])
Coupling = transforms.PiecewiseRationalQuadraticCouplingTransform


def network(images):
    """What makes a conditioner, of both kinds that a coupling takes."""
    if images:
        return lambda inputs, outputs: nets.nets.ConvResidualNet(inputs, outputs, hidden_channels=8, num_blocks=1)
    return lambda inputs, outputs: nets.nets.ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)


def points(mask, images):
    return torch.randn(3, len(mask), 2, 4) if images else torch.randn(7, len(mask))


@ALL_MASKS
@IMAGES
@pytest.mark.parametrize("kind", [AffineCouplingTransform, transforms.AdditiveCouplingTransform])
def test_affine_couplings(check_parity, kind, mask, images):
    check_parity(kind(torch.tensor(mask), network(images)), points(mask, images), replaced=1 if images else 2)


@ALL_MASKS
@IMAGES
@pytest.mark.parametrize("unconditional", [False, True])
def test_spline_coupling_with_linear_tails(check_parity, mask, images, unconditional):
    layer = Coupling(
        torch.tensor(mask),
        network(images),
        num_bins=5,
        tails="linear",
        tail_bound=2.0,
        apply_unconditional_transform=unconditional,
        img_shape=[2, 4] if images else None,
    )
    check_parity(layer, 1.5 * points(mask, images), replaced=(1 if images else 2) + unconditional)


@IMAGES
def test_spline_coupling_without_tails(check_parity, images):
    mask = MASKS["last"]
    layer = Coupling(torch.tensor(mask), network(images), num_bins=5, tails=None)
    check_parity(layer, points(mask, images).sigmoid(), replaced=1 if images else 2)
    with pytest.raises(transforms.InputOutsideDomain):
        accelerate(layer) and layer(2 + points(mask, images))


@pytest.fixture
def residual_calls(monkeypatch):
    """What the compiled perceptron answered."""
    calls, original = [], perceptron.perceptron
    monkeypatch.setattr(perceptron, "perceptron", lambda *a, **k: calls.append(original(*a, **k)) or calls[-1])
    return calls


@pytest.mark.parametrize("rows", [7, 100])
@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
@pytest.mark.parametrize(
    "activation",
    [nn.functional.relu, nn.functional.leaky_relu, nn.ReLU(), nn.LeakyReLU(0.3)],
    ids=["relu", "leaky_relu", "ReLU", "LeakyReLU"],
)
def test_residual_network(check_parity, residual_calls, rows, blocks, activation):
    net = nets.nets.ResidualNet(3, 5, 16, num_blocks=blocks, activation=activation)
    check_parity(net, torch.randn(rows, 3), methods=("forward",), replaced=1)
    assert any(y is not None for y in residual_calls) == (blocks < 4)


@pytest.mark.parametrize(
    "options",
    [
        {"use_batch_norm": True},
        {"context_features": 2},
        {"activation": torch.tanh},
        {"activation": nn.Tanh()},
        {"activation": nn.ReLU(inplace=True)},
    ],
    ids=["batch normalisation", "context", "tanh", "Tanh", "in place"],
)
def test_residual_network_with_other_layers_is_left_alone(options):
    report = accelerate(nets.nets.ResidualNet(3, 5, 16, **options), strict=True)
    assert not report.replaced
    assert not report.left_alone


def test_residual_network_with_dropout(residual_calls):
    theirs = nets.nets.ResidualNet(3, 5, 16, dropout_probability=0.5)
    ours, x = copy.deepcopy(theirs), torch.randn(70, 3)
    accelerate(ours, strict=True)
    for training in (True, False):
        assert not residual_calls
        results = []
        for net in (theirs, ours):
            torch.manual_seed(0)
            results.append((net.train(training)(x), torch.get_rng_state()))
        torch.testing.assert_close(*results)
    assert residual_calls


def test_residual_network_that_is_changed_afterwards(residual_calls):
    theirs = nets.nets.ResidualNet(3, 5, 16)
    ours, x = copy.deepcopy(theirs), torch.randn(70, 3)
    accelerate(ours, strict=True)

    def change(of):
        for inner in (of.initial_layer, of.blocks[1], of.blocks[0].linear_layers[1], of.blocks[0].dropout):
            handle = inner.register_forward_hook(lambda module, args, output: 2 * output)
            yield
            handle.remove()
        of.blocks[0].activation = torch.tanh
        yield
        of.blocks[0].activation = torch.relu
        of.blocks[1] = OneLayer()
        yield

    for _ in zip(change(theirs), change(ours), strict=True):
        torch.testing.assert_close(ours(x), theirs(x))
    assert not residual_calls


class OneLayer(nn.Module):
    """A block of no known class."""

    def forward(self, x, context=None):
        return 3 * x


def test_residual_network_takes_what_the_library_takes():
    net = nets.nets.ResidualNet(3, 5, 16)
    accelerate(net, strict=True)
    assert net(torch.randn(3)).shape == (5,)
    assert net(torch.randn(4, 6, 3)).shape == (4, 6, 5)
    assert net(torch.randn(0, 3)).shape == (0, 5)
    for wrong in (torch.randn(4, 2), torch.randn(4, 3).double()):
        with pytest.raises(RuntimeError):
            net(wrong)
    with pytest.raises(RuntimeError):
        net(torch.randn(4, 3), torch.randn(4, 1))


def test_spline_coupling_warns_as_the_library_does():
    layer = Coupling(torch.tensor([0, 1]), lambda i, o: Plain(i, o), tails="linear")
    accelerate(layer, strict=True)
    with pytest.warns(UserWarning, match="not scaled down"):
        layer(torch.randn(3, 2))


class Plain(nn.Module):
    """A conditioner of no special kind, which may draw random numbers and count its calls."""

    def __init__(self, inputs, outputs, dropout=0.0):
        super().__init__()
        self.linear, self.dropout, self.calls = nn.Linear(inputs, outputs), nn.Dropout(dropout), 0

    def forward(self, x, context=None):
        self.calls += 1
        return self.dropout(self.linear(x if context is None else x + context))


class InPlace(Plain):
    def forward(self, x, context=None):
        return self.linear(x.mul_(2))


@pytest.mark.parametrize("mask", [[0, 0, 1], [1, 0], [0, 1, 1, 0]], ids=str)
def test_a_conditioner_may_change_what_it_is_given(check_parity, mask):
    check_parity(AffineCouplingTransform(torch.tensor(mask), InPlace), torch.randn(4, len(mask)))


@pytest.mark.parametrize("method", ["forward", "inverse"])
@pytest.mark.parametrize("unconditional", [False, True])
def test_a_conditioner_of_another_output_runs_once(method, unconditional):
    """Half precision from the conditioner is the library's to compute with, from that one call."""
    layer = AffineCouplingTransform(
        torch.tensor([0, 0, 1]),
        lambda i, o: Half(i, o, dropout=0.5),
        (lambda features: transforms.ActNorm(features)) if unconditional else None,
    )
    ours = copy.deepcopy(layer)
    accelerate(ours, strict=True)
    x = torch.randn(5, 3)
    results = []
    for module in (layer, ours):
        torch.manual_seed(0)
        results.append((*getattr(module, method)(x), torch.get_rng_state()))
        assert module.transform_net.calls == 1
    torch.testing.assert_close(*results)


class Half(Plain):
    def forward(self, x, context=None):
        return super().forward(x, context).bfloat16()


def test_context_reaches_the_conditioner():
    layer = AffineCouplingTransform(torch.tensor([0, 1]), Plain)
    x, context = torch.randn(3, 2), torch.randn(3, 1)
    expected = layer(x, context)
    accelerate(layer, strict=True)
    torch.testing.assert_close(layer(x, context), expected)


class Activated(AffineCouplingTransform):
    """As on GitHub, where the scale activation is an argument."""

    def _scale_and_shift(self, transform_params):
        scale = self.scale_activation(transform_params[:, self.num_transform_features :, ...])
        return scale, transform_params[:, : self.num_transform_features, ...]


ACTIVATIONS = {
    "default": (lambda x: torch.sigmoid(x + 2) + 1e-3, True),
    "general": (lambda x: (nn.functional.softplus(x) + 1e-3).clamp(0, 3), True),
    "unknown": (lambda x: torch.exp(x.clamp(-1, 1)), False),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_scale_activations_are_recognised_by_what_they_do(check_parity, monkeypatch, name):
    activation, known = ACTIVATIONS[name]
    layer = AffineCouplingTransform(torch.tensor([0, 1, 1]), network(False))
    layer.scale_activation = activation
    monkeypatch.setattr(AffineCouplingTransform, "_scale_and_shift", Activated._scale_and_shift)
    check_parity(layer, torch.randn(6, 3))
    from flowkernels.integrations import nflows as adapter

    assert (adapter._form(layer) is not adapter._GIVEN) == known


def test_loading_another_mask_is_noticed():
    layer = AffineCouplingTransform(torch.tensor([0, 1]), Plain)
    other = AffineCouplingTransform(torch.tensor([1, 0]), Plain)
    accelerate(layer)
    layer(torch.randn(3, 2))
    layer.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(3, 2)
    torch.testing.assert_close(layer(x), other(x))


def test_wrong_inputs_raise_the_librarys_errors():
    layer = AffineCouplingTransform(torch.tensor([0, 1]), Plain)
    accelerate(layer)
    with pytest.raises(ValueError, match="Expected features = 2"):
        layer(torch.randn(3, 3))
    with pytest.raises(ValueError, match="2D or a 4D"):
        layer(torch.randn(3, 2, 2))


@pytest.mark.parametrize(
    "layer",
    [
        transforms.MaskedAffineAutoregressiveTransform(4, 8),
        transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(4, 8, tails="linear", tail_bound=2.0),
    ],
    ids=["affine", "spline"],
)
def test_autoregressive(check_parity, layer):
    check_parity(layer, 1.5 * torch.randn(5, 4), replaced=1)


@pytest.mark.parametrize("shape", [(5,), (5, 3, 2)], ids=str)
@pytest.mark.parametrize("tails", ["linear", None])
def test_cdf(check_parity, shape, tails):
    layer = PiecewiseRationalQuadraticCDF(shape, num_bins=4, tails=tails, tail_bound=2.0)
    x = torch.randn(6, *shape)
    check_parity(layer, x if tails else x.sigmoid(), replaced=1)


@pytest.mark.parametrize("factor, side", [(2, 24), (2, 4), (3, 24)])
def test_squeeze(check_parity, factor, side):
    layer = transforms.SqueezeTransform(factor)
    check_parity(layer, torch.randn(2, 4 * factor**2, side, side), replaced=1)
    x = torch.randn(2, 36, side, side)
    accelerate(layer)
    assert torch.equal(layer.inverse(layer(x)[0])[0], x)
    log_det = layer(x)[1]
    log_det += 1  # a tensor of its own, as the library's


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2)], ids=str)
def test_actnorm(check_parity, shape):
    layer = transforms.ActNorm(4)
    layer(2 * torch.randn(9, *shape) + 1)
    check_parity(layer, torch.randn(6, *shape), replaced=1)
    check_parity(layer.eval(), torch.randn(6, *shape), replaced=1)


def test_actnorm_is_initialised_as_the_library_does():
    theirs, ours, x = transforms.ActNorm(3), transforms.ActNorm(3), 2 * torch.randn(9, 3) + 1
    accelerate(ours)
    for module in (theirs, ours):
        module.eval()(x)
        module.train()(x)
    assert ours.initialized
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    log_det = ours(x)[1]
    log_det += 1  # a tensor of its own, as the library's


def multiscale():
    composite = transforms.MultiscaleCompositeTransform(2)
    shape = composite.add_transform(coupled(4), (4, 2, 2))
    composite.add_transform(coupled(shape[0]), shape)
    return transforms.CompositeTransform([transforms.SqueezeTransform(), composite])


def coupled(channels):
    mask = torch.arange(channels) % 2
    coupling = AffineCouplingTransform(mask, network(True))
    return transforms.CompositeTransform([transforms.OneByOneConvolution(channels), coupling])


def test_multiscale(check_parity):
    report = check_parity(multiscale(), torch.randn(3, 1, 4, 4), methods=("forward",), replaced=3)
    assert ("permutation", False) in {(left.name.rpartition(".")[2], left.known) for left in report.left_alone}


def test_a_flow_scores_and_samples_alike():
    layers = [
        transforms.RandomPermutation(4),
        Coupling(torch.tensor([0, 1, 0, 1]), network(False), tails="linear", tail_bound=3.0, num_bins=6),
        transforms.InverseTransform(AffineCouplingTransform(torch.tensor([1, 0, 0, 1]), network(False))),
        transforms.ActNorm(4),
    ]
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([4]))
    x = torch.randn(9, 4)
    flow.log_prob(x)
    ours = copy.deepcopy(flow)
    report = accelerate(ours, strict=True)
    assert len(report.replaced) == 5
    torch.testing.assert_close(ours.log_prob(x), flow.log_prob(x))
    torch.manual_seed(0)
    expected = flow.sample_and_log_prob(6)
    torch.manual_seed(0)
    torch.testing.assert_close(ours.sample_and_log_prob(6), expected)
    report.undo()
    assert not any("flowkernels" in type(module).__module__ for module in ours.modules())
