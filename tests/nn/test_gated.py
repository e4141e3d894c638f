import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flowkernels as fk
from flowkernels.nn.gated import ConcatELU, GatedConv, LayerNormChannels


def redraw(module):
    """Other parameters than those of the start, which are zeros and ones in part."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def test_concat_elu_leaves_its_input_alone():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    y = ConcatELU()(x)
    assert torch.equal(y, torch.cat((F.elu(before), F.elu(-before)), 1))
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(ConcatELU(), x)
    assert torch.autograd.gradgradcheck(ConcatELU(), x)


def test_layer_norm_is_that_of_each_pixel():
    layer, x = redraw(LayerNormChannels(5)), torch.randn(2, 5, 3, 4).double()
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(layer(x), (x - mean) / torch.sqrt(var + 1e-5) * layer.gamma + layer.beta)
    assert [tuple(p.shape) for p in layer.parameters()] == [(1, 5, 1, 1)] * 2


def test_gated_convolution():
    layer, x = redraw(GatedConv(3, 4)), torch.randn(2, 3, 5, 5).double()
    value, gate = layer.net(x).chunk(2, 1)
    torch.testing.assert_close(layer(x), x + value * torch.sigmoid(gate))


def test_the_network_starts_at_zero_and_is_the_chain_of_its_parts():
    network = fk.nn.GatedConvNet(2, 4, num_layers=2)
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(network(x), torch.zeros(3, 4, 6, 6))
    redraw(network)
    h = network.nn[0](x.double())
    for i in (1, 3):
        h = network.nn[i + 1](network.nn[i](h))
    torch.testing.assert_close(network(x.double()), network.nn[6](network.nn[5](h)))
    assert fk.nn.GatedConvNet(2, 4, 7)(x).shape == (3, 7, 6, 6)


def test_a_context_is_more_channels():
    network = redraw(fk.nn.GatedConvNet(1, 4, context=2))
    x, context = torch.randn(3, 1, 5, 5).double(), torch.randn(3, 2).double()
    image = context[:, :, None, None].expand(3, 2, 5, 5)
    torch.testing.assert_close(network(x, context), network.nn(torch.cat((x, image), 1)))
    torch.testing.assert_close(network(x, image), network(x, context))
    for wrong in (None, torch.zeros(3, 1), torch.zeros(3, 2, 4, 4)):
        with pytest.raises(ValueError, match=r"context of shape \(B, 2\) or \(3, 2, 5, 5\); got "):
            network(x, wrong)
    with pytest.raises(ValueError, match=r"context=0; got a context of shape \(3, 2\)"):
        fk.nn.GatedConvNet(1)(x, context)


@pytest.mark.parametrize(
    ("name", "value"), [("c_in", 0), ("c_hidden", 0), ("c_out", -1), ("num_layers", -1), ("context", -1), ("c_in", 1.0)]
)
def test_numbers_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer, at least .*; got {value}"):
        fk.nn.GatedConvNet(**{"c_in": 1, **{name: value}})
