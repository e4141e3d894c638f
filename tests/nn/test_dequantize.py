import math

import pytest
import torch

import flowkernels as fk
from flowkernels.nn import dequantize


def with_noise(layer, x, u, monkeypatch):
    """The layer's forward with noise u in [0, 1) from the generator."""
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.as_tensor(u, dtype=like.dtype).expand_as(like))
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
        torch.autograd.functional.jacobian(lambda v: with_noise(layer, v[None], u, monkeypatch)[0][0], row) for row in x
    ]
    expected = torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians]) + 4 * math.log(1 - 2.0**-11)
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
