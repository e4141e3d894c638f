import pytest
import torch
from torch import distributions, nn

import flowkernels as fk


def prior(channels):
    """A convolution of the kept half to mean and log-deviation of the other."""
    return nn.Conv2d(channels - channels // 2, 2 * (channels // 2), 3, padding=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_second_half_is_scored_given_the_first(dtype, channels, memory_format):
    layer = fk.nn.Split(prior(channels)).to(dtype)
    x = torch.randn(3, channels, 4, 6, dtype=dtype).contiguous(memory_format=memory_format)
    kept, out, log_prob = layer.encode(x)
    mean, log_std = layer.prior(x[:, : channels - channels // 2]).chunk(2, 1)
    expected = distributions.Normal(mean, log_std.exp()).log_prob(x[:, channels - channels // 2 :]).sum((1, 2, 3))
    torch.testing.assert_close(log_prob, expected)
    assert torch.equal(torch.cat((kept, out), 1), x)
    assert torch.equal(layer.decode(kept, out), x)


def test_a_standard_normal_without_a_prior():
    layer = fk.nn.Split()
    x = torch.randn(5, 6)
    kept, out, log_prob = layer.encode(x, torch.zeros(5, 1))
    torch.testing.assert_close(log_prob, distributions.Normal(0.0, 1.0).log_prob(x[:, 3:]).sum(1))
    assert torch.equal(layer.decode(kept, out), x)
    assert layer.sample_out(kept).shape == (5, 3)
    assert not layer.state_dict()


def test_gradients_are_those_of_the_formula():
    layer = fk.nn.Split(prior(4)).double()
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    kept, out, log_prob = layer.encode(x)
    mean, log_std = layer.prior(x[:, :2]).chunk(2, 1)
    expected = distributions.Normal(mean, log_std.exp()).log_prob(x[:, 2:]).sum((1, 2, 3))
    weights = torch.randn(3, dtype=torch.float64)
    parameters = [x, *layer.parameters()]
    ours = torch.autograd.grad((weights * log_prob).sum() + kept.square().sum() + out.sum(), parameters)
    theirs = torch.autograd.grad((weights * expected).sum() + x[:, :2].square().sum() + x[:, 2:].sum(), parameters)
    torch.testing.assert_close(ours, theirs)


class OfContext(nn.Module):
    def forward(self, kept, context=None):
        mean = torch.zeros_like(kept) if context is None else context[:, :, None, None].expand_as(kept)
        return torch.cat((mean, torch.full_like(kept, -1.0)), 1)


def test_the_prior_sees_the_context():
    layer = fk.nn.Split(OfContext())
    x, context = torch.randn(3, 4, 2, 2), torch.randn(3, 2)
    _, out, log_prob = layer.encode(x, context)
    moments = context[:, :, None, None], torch.tensor(-1.0).exp()
    torch.testing.assert_close(log_prob, distributions.Normal(*moments).log_prob(out).sum((1, 2, 3)))
    cold = layer.sample_out(x[:, :2], context, temperature=0.0)
    assert torch.equal(cold, context[:, :, None, None].expand(3, 2, 2, 2))


def test_draws_follow_moments_temperature_and_generator():
    layer = fk.nn.Split(OfContext())
    kept = torch.zeros(500, 2, 4, 4)
    draws = [layer.sample_out(kept, temperature=0.5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert abs(draws[0].std() - 0.5 / torch.e) < 0.005
    assert layer.double().sample_out(kept.double()).dtype == torch.float64


def test_errors_name_what_is_wrong():
    with pytest.raises(TypeError, match="prior must be callable or None; got int"):
        fk.nn.Split(3)
    with pytest.raises(ValueError, match=r"an even number of channels; got \(2, 5\)"):
        fk.nn.Split().encode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"at least two channels; got \(2, 1, 3, 3\)"):
        fk.nn.Split(prior(4)).encode(torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"of shape \(2, 4, 3, 3\) for kept .* got halves of shape \(2, 1, 3, 3\)"):
        fk.nn.Split(nn.Conv2d(2, 2, 1)).encode(torch.zeros(2, 4, 3, 3))
