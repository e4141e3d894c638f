import pytest
import torch
from torch import nn

import flowkernels as fk


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("features", [2, 5, 8])
def test_realnvp_starts_as_the_identity(features):
    flow = fk.models.realnvp(features)
    x = torch.randn(6, features)
    assert torch.equal(flow.encode(x)[0], x)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_realnvp_transforms_every_feature_and_alternates():
    flow = fk.models.realnvp(5, transforms=2, hidden=(4,))
    for parameter in flow.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(6, 5)
    assert (flow.encode(x)[0] != x).all()
    assert [layer.passive for layer in flow.layers] == [2, -3]


@pytest.mark.parametrize("features", [2, 5])
def test_nsf_starts_as_the_identity_and_transforms_every_feature(features):
    flow = fk.models.nsf(features, transforms=2, hidden=(4,), bins=5)
    x = torch.randn(6, features)
    torch.testing.assert_close(flow.encode(x)[0], x)
    for parameter in flow.parameters():
        nn.init.normal_(parameter)
    x = x.clamp(-2.9, 2.9).double()
    flow.double()
    assert (flow.encode(x)[0] != x).all()
    torch.testing.assert_close(flow.decode(flow.encode(x)), x)
    assert flow.sample(3).shape == (3, features)


def test_nsf_depends_on_its_context():
    flow = fk.models.nsf(4, transforms=2, context=3)
    nn.init.normal_(flow.layers[0].conditioner.layers[-1].weight)
    x = torch.randn(6, 4)
    assert not torch.allclose(flow.log_prob(x, torch.zeros(6, 3)), flow.log_prob(x, torch.ones(6, 3)))


def test_nsf_learns():
    """A density with two humps in each direction, which no affine coupling fits with two layers."""
    flow = fk.models.nsf(2, transforms=2, hidden=(16,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        x = torch.randn(256, 2) * 0.2 + torch.randint(2, (256, 2)) * 2 - 1
        loss = -flow(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = 2 * torch.log(torch.tensor(2 * 0.2 * (2 * torch.pi * torch.e) ** 0.5))
    assert loss < entropy + 0.2


def test_realnvp_options():
    flow = fk.models.realnvp(6, transforms=3, hidden=(7,), context=2)
    assert len(flow.layers) == 3
    assert flow.event_shape == (6,)
    assert [m.out_features for m in flow.layers[0].conditioner.layers if isinstance(m, nn.Linear)] == [7, 6]
    assert len(fk.models.realnvp(4, hidden=()).layers[0].conditioner.layers) == 1  # a linear conditioner


def test_realnvp_depends_on_its_context():
    flow = fk.models.realnvp(4, transforms=2, context=3)
    nn.init.normal_(flow.layers[0].conditioner.layers[-1].weight)
    x = torch.randn(6, 4)
    assert not torch.allclose(flow.log_prob(x, torch.zeros(6, 3)), flow.log_prob(x, torch.ones(6, 3)))
    for context in (None, torch.zeros(6, 2)):
        with pytest.raises(ValueError, match=r"context of shape \(B, 3\)"):
            flow.log_prob(x, context)
    with pytest.raises(ValueError, match="context=0"):
        fk.models.realnvp(4).log_prob(x, torch.zeros(6, 3))


def test_realnvp_learns():
    """Two half-moons' worth of structure: a banana that a Gaussian cannot fit."""
    flow = fk.models.realnvp(2, transforms=4, hidden=(32,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)

    def batch():
        z = torch.randn(256, 2)
        return torch.stack((z[:, 0], 0.3 * z[:, 1] + z[:, 0] ** 2), 1)

    for _ in range(150):
        loss = -flow(batch()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = 1 + torch.log(torch.tensor(2 * torch.pi)) + torch.log(torch.tensor(0.3))
    assert loss < entropy + 0.3
    samples = flow.sample(2000)
    assert (samples[:, 1] - samples[:, 0] ** 2).std() < 0.6


@pytest.mark.parametrize(
    "kwargs",
    [
        {"features": 1},
        {"features": 2.0},
        {"features": 4, "transforms": 0},
        {"features": 4, "hidden": (8, 0)},
        {"features": 4, "context": -1},
    ],
)
def test_numbers_out_of_range_are_named(kwargs):
    name, value = list(kwargs.items())[-1]
    wrong = 0 if name == "hidden" else value
    with pytest.raises(ValueError, match=f"{name} must be an integer, at least .*; got {wrong}"):
        fk.models.realnvp(**kwargs)


@pytest.mark.parametrize("flow", ["planar", "radial"])
def test_a_vae_starts_with_a_standard_normal_posterior(flow):
    model = fk.models.vae(6, latent=3, hidden=(8, 5), flow=flow, depth=4)
    context = model.encoder(torch.randint(2, (7, 6)).float())
    assert context.shape == (7, 5)
    z, log_prob = model.posterior.rsample_and_log_prob(2, context)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(2)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)
    assert [m.out_features for m in model.decoder if isinstance(m, nn.Linear)] == [5, 8, 6]


def test_a_vae_learns_and_its_samples_follow_the_generator():
    """Two patterns of pixels, which one latent tells apart."""
    model = fk.models.vae(8, latent=2, hidden=(16,), depth=2)
    patterns = torch.tensor([[0.0, 1.0] * 4, [1.0, 1.0, 0.0, 0.0] * 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        loss = model(patterns[torch.randint(2, (64,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert model.log_likelihood(patterns, 200).mean() > -1.2  # of which log 2 is which pattern it is
        samples = model.sample(50, generator=torch.Generator().manual_seed(1))
        assert torch.equal(samples, model.sample(50, generator=torch.Generator().manual_seed(1)))
    distance = (samples[:, None] - patterns).abs().amax(2).amin(1)
    assert (distance < 0.5).double().mean() > 0.7


def test_a_vae_of_no_maps_has_a_normal_posterior():
    assert len(fk.models.vae(6, depth=0).posterior.layers) == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"features": 0}, "features must be an integer, at least 1; got 0"),
        ({"features": 4, "latent": 0}, "latent must be an integer, at least 1; got 0"),
        ({"features": 4, "hidden": ()}, r"hidden must hold at least one size; got \(\)"),
        ({"features": 4, "depth": -1}, "depth must be an integer, at least 0; got -1"),
        ({"features": 4, "flow": "spline"}, "flow must be one of planar, radial; got 'spline'"),
    ],
)
def test_what_a_vae_cannot_be_built_from_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fk.models.vae(**kwargs)


def test_the_samples_of_a_likelihood_must_be_some():
    with pytest.raises(ValueError, match="samples must be an integer, at least 1; got 0"):
        fk.models.vae(4).log_likelihood(torch.zeros(2, 4), 0)
