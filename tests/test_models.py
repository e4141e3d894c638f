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
