import math

import pytest
import torch

import flowkernels as fk
from flowkernels.nn import dequantize


def with_noise(layer, x, u, monkeypatch):
    """The layer's forward where u in [0, 1) comes out of the generator."""

    def uniform(layer, x, low, high):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return (torch.as_tensor(u).to(dtype) * (high - low) + low).expand_as(x)

    monkeypatch.setattr(fk.nn.Dequantize, "_uniform", uniform)
    return layer(x)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2**-24])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_every_level_comes_back_at_the_ends_of_the_noise(levels, u, dtype, monkeypatch):
    x = torch.arange(levels).to(dtype)[None]
    layer = fk.nn.Dequantize(levels)
    z, _ = with_noise(layer, x, u, monkeypatch)
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    back, _ = layer.inverse(z)
    assert back.dtype == torch.uint8
    assert torch.equal(back, x.to(torch.uint8))


def test_random_pixels_come_back():
    x = torch.randint(256, (200, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(fk.nn.Dequantize().inverse(fk.nn.Dequantize()(x)[0])[0], x)


def test_more_than_256_levels_are_int32():
    layer = fk.nn.Dequantize(levels=1000)
    x = torch.arange(1000)[None].double()
    back, _ = layer.inverse(layer(x)[0])
    assert back.dtype == torch.int32
    assert torch.equal(back, x.int())


@pytest.mark.parametrize("alpha", [0.0, 1e-5, 0.05])
def test_log_det_is_that_of_the_map_and_the_density_of_the_noise(alpha, monkeypatch):
    layer = fk.nn.Dequantize(17, alpha)
    x = torch.randint(17, (3, 4)).double()
    u = torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(lambda v, row=row: with_noise(layer, row[None], v, monkeypatch)[0][0], u)
        for row in x
    ]
    expected = torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians])
    z, log_det = with_noise(layer, x, u, monkeypatch)
    torch.testing.assert_close(log_det, expected)
    torch.testing.assert_close(layer.inverse(z)[1], -log_det)


def test_float32_keeps_its_accuracy_at_the_bright_end(monkeypatch):
    # What is left is the rounding of u; 1 - q computed from a rounded q would be off by 3e-3.
    x = torch.tensor([[255, 0, 128]])
    z, log_det = with_noise(fk.nn.Dequantize(), x, 0.999, monkeypatch)
    exact, exact_log_det = with_noise(fk.nn.Dequantize(), x.double(), torch.tensor(0.999).item(), monkeypatch)
    torch.testing.assert_close(z.double(), exact, rtol=0, atol=3e-5)
    torch.testing.assert_close(log_det.double(), exact_log_det, rtol=0, atol=3e-5)


def test_noise_stays_inside_its_margin(monkeypatch):
    for u, p in ((0.0, dequantize.MARGIN), (1.0, 1 - dequantize.MARGIN)):
        z, _ = with_noise(fk.nn.Dequantize(2, alpha=0.0), torch.zeros(1, 1).double(), u, monkeypatch)
        torch.testing.assert_close(torch.sigmoid(z).item() * 2, p)


def test_a_uniform_model_needs_log2_levels_bits():
    """Where the latents' density is that of uniform p, the bound is exact but for alpha and the margin."""
    levels, d = 16, 8
    layer = fk.nn.Dequantize(levels, alpha=0.0)
    z, log_det = layer(torch.randint(levels, (50, d)))
    log_prob = (torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)).sum(1)
    bits = -(log_prob + log_det) / (d * math.log(2))
    torch.testing.assert_close(bits, torch.full_like(bits, 4 - math.log2(1 - 2.0**-11)))


def test_noise_is_fresh_and_follows_the_seed():
    layer, x = fk.nn.Dequantize(17), torch.randint(17, (2, 5))
    torch.manual_seed(1)
    one, other = layer(x)[0], layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], one)
    assert not torch.equal(one, other)


def test_whole_numbers_follow_the_layer_to_double():
    assert fk.nn.Dequantize().double()(torch.zeros(2, 3, dtype=torch.uint8))[0].dtype == torch.float64
    assert fk.nn.Dequantize()(torch.zeros(2, 3).half())[0].dtype == torch.float32


def test_compiles_saves_and_prints():
    layer = fk.nn.Dequantize(17)
    x = torch.randint(17, (2, 5))
    z, log_det = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(layer.inverse(z)[0], x.to(torch.uint8))
    assert log_det.shape == (2,)
    assert not layer.state_dict()
    assert repr(layer) == "Dequantize(levels=17, alpha=1e-05)"


@pytest.mark.parametrize(("levels", "alpha"), [(1, 0.0), (2.5, 0.0), (256, 1.0), (256, -0.1), (256, math.nan)])
def test_values_out_of_range_are_named(levels, alpha):
    wrong = alpha if levels == 256 else levels
    with pytest.raises(ValueError, match=str(wrong)):
        fk.nn.Dequantize(levels, alpha)


def conditional_couplings():
    """Two checkerboard couplings of 2x2 pixels, given an image of one channel, that are not the identity."""
    layers = []
    for invert in (False, True):
        network = fk.nn.GatedConvNet(1, 2, num_layers=1, context=1)
        torch.nn.init.normal_(network.nn[-1].weight, std=0.5)
        layers.append(fk.nn.AffineCoupling(network, mask=fk.nn.checkerboard_mask(2, 2, invert)))
    return layers


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_variational_noise_has_the_density_that_is_subtracted(levels, monkeypatch):
    """Noise and its density by the Jacobian of the map from the generator's u to the noise."""
    layers = conditional_couplings()
    layer = fk.nn.VariationalDequantize(layers, levels, alpha=0.01).double()
    x = torch.randint(levels, (3, 1, 2, 2)).double()
    u = torch.rand_like(x)

    def noise(v, image):
        y = torch.logit(v)
        for coupling in reversed(layers):
            y, _ = coupling.inverse(y, 2 * image / (levels - 1) - 1)
        return 2.0**-12 + (1 - 2.0**-11) * torch.sigmoid(y)

    z, log_det = with_noise(layer, x, u, monkeypatch)
    expected, of_map = fk.dequantize(x, noise(u, x), levels=levels, alpha=0.01)
    torch.testing.assert_close(z, expected)
    jacobians = [
        torch.autograd.functional.jacobian(
            lambda v, n=n: noise(v.reshape(1, 1, 2, 2), x[n : n + 1]).flatten(), u[n].flatten()
        )
        for n in range(3)
    ]
    torch.testing.assert_close(log_det, of_map + torch.linalg.slogdet(torch.stack(jacobians))[1])
    assert torch.equal(layer.inverse(z)[0], x.to(torch.uint8))


def test_no_layers_are_uniform_dequantization(monkeypatch):
    x = torch.randint(17, (4, 5)).double()
    u = torch.rand_like(x)
    expected = with_noise(fk.nn.Dequantize(17), x, u, monkeypatch)
    torch.testing.assert_close(with_noise(fk.nn.VariationalDequantize([], 17), x, u, monkeypatch), expected)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_variational_noise_come_back(u, monkeypatch):
    x = torch.arange(256)[None]
    z, log_det = with_noise(fk.nn.VariationalDequantize([]), x, u, monkeypatch)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert torch.equal(fk.nn.VariationalDequantize([]).inverse(z)[0], x.to(torch.uint8))


def test_variational_noise_has_gradients_and_ignores_a_context():
    layer = fk.nn.VariationalDequantize(conditional_couplings(), 16)
    x = torch.randint(16, (4, 1, 2, 2), dtype=torch.uint8)
    torch.manual_seed(1)
    z, log_det = layer(x)
    torch.manual_seed(1)
    again, _ = layer(x, torch.zeros(4, 7))
    assert torch.equal(z, again)
    (z.square().sum() + log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert layer.dequantizes
    assert set(layer.state_dict()) == {f"flow.{name}" for name in layer.flow.state_dict()}


def test_variational_dequantization_compiles():
    layer = fk.nn.VariationalDequantize(conditional_couplings(), 16)
    x = torch.randint(16, (4, 1, 2, 2), dtype=torch.uint8)
    z, log_det = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(layer.inverse(z)[0], x)
    assert log_det.shape == (4,)


def test_what_is_no_flow_is_named():
    with pytest.raises(TypeError, match=r"flow must be a sequence of layers, .*; got Permute"):
        fk.nn.VariationalDequantize(fk.nn.Permute(2))
    with pytest.raises(TypeError, match="layer 1 of flow must be a module with inverse; got Linear"):
        fk.nn.VariationalDequantize([fk.nn.Permute(2), torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="levels must be an integer from 2 to 65536; got 1"):
        fk.nn.VariationalDequantize([], 1)
