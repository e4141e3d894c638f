import pytest
import torch
from torch import distributions

import flowkernels as fk


@pytest.mark.parametrize("context_features", [0, 2])
def test_diagonal_normal_starts_as_a_standard_normal(context_features):
    base = fk.bases.DiagonalNormal(3, context_features)
    z = torch.randn(5, 3)
    context = torch.randn(5, 2) if context_features else None
    expected = distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_prob(z, context), expected)


@pytest.mark.parametrize("context_features", [0, 2])
def test_diagonal_normal_is_the_density_of_its_samples(context_features):
    base = fk.bases.DiagonalNormal(3, context_features)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter)
    context = torch.randn(1, 2).expand(50_000, 2) if context_features else None
    z = base.rsample(50_000, context, 1.0, torch.Generator().manual_seed(1))
    fitted = distributions.Normal(z.mean(0), z.std(0))
    torch.testing.assert_close(base.log_prob(z, context), fitted.log_prob(z).sum(1), rtol=0.05, atol=0.1)
    cold = base.rsample(50_000, context, 0.0, None)
    torch.testing.assert_close(cold[0], z.mean(0), rtol=0.05, atol=0.05)
    z.sum().backward()
    assert all(p.grad is not None for p in base.parameters())


def test_a_flow_over_a_conditional_base_samples_for_each_context():
    flow = fk.Flow([fk.nn.AmortizedRadial(3, 2, 4)], fk.bases.DiagonalNormal(3, 4))
    assert flow.event_shape == (3,)
    context = torch.randn(5, 4)
    assert flow.sample(6, context).shape == (5, 6, 3)
    with pytest.raises(ValueError, match=r"context of shape \(B, 4\); got None"):
        flow.sample(6)
    with pytest.raises(ValueError, match="features must be an integer, at least 1; got 0"):
        fk.bases.DiagonalNormal(0)
