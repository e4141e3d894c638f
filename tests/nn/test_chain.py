"""Couplings that follow each other in a flow run as one node, and as their layers do."""

import copy

import pytest
import torch
from torch import nn

import flowkernels as fk
from flowkernels.nn.chain import Chain, joined
from flowkernels.ops import coupling_chain


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 9), nn.LeakyReLU(0.1), nn.Linear(9, outputs))


def flow(features=5, layers=4, make=network):
    torch.manual_seed(0)
    halves = [features // 2, features - features // 2]
    couplings = []
    for i in range(layers):
        kept = halves[i % 2]
        couplings.append(fk.nn.AffineCoupling(make(kept, 2 * (features - kept)), passive=kept if i % 2 == 0 else -kept))
    return fk.Flow(couplings, event_shape=(features,))


def apart(model):
    """A copy whose layers do not join: a hook is called for each."""
    model = copy.deepcopy(model)
    for layer in model.layers:
        layer.register_forward_hook(lambda *_: None)
    return model


def results(model, x):
    torch.manual_seed(1)
    found = [model.log_prob(x), *model.encode(x), model.decode([x]), model.sample(3), *model.rsample_and_log_prob(3)]
    loss = sum(value.square().mean() for value in found if value.requires_grad)
    return [*found, *torch.autograd.grad(loss, list(model.parameters()))]


def test_as_the_layers_apart():
    model, x = flow(), torch.randn(70, 5)
    for found, expected in zip(results(model, x), results(apart(model), x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_chain_is_one_node(monkeypatch):
    ran, run = [], coupling_chain.run
    monkeypatch.setattr(coupling_chain, "run", lambda *arguments: ran.append(run(*arguments)) or ran[-1])
    model = flow()
    model.log_prob(torch.randn(7, 5))
    model.decode([torch.randn(7, 5)])
    assert [found is not None for found in ran] == [True, True]
    assert ran[0][0].grad_fn is ran[0][1].grad_fn


def test_realnvp_as_its_layers_apart():
    model, x = fk.models.realnvp(6, transforms=3), torch.randn(70, 6)
    for layer in model.layers:
        nn.init.normal_(layer.conditioner.layers[-1].weight, std=0.1)
    for found, expected in zip(results(model, x), results(apart(model), x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_plain_couplings_without_context_join():
    model = flow(layers=6)
    model.layers[2].register_forward_hook(lambda *_: None)
    found = joined(model.layers, None)
    assert [index for index, _ in found] == [0, 2, 3]
    assert [type(layer) for _, layer in found] == [Chain, fk.nn.AffineCoupling, Chain]
    assert [layer for _, layer in joined(model.layers, torch.zeros(1, 1))] == list(model.layers)
    others = [
        fk.nn.AffineCoupling(network(5, 10), mask=fk.nn.channel_mask(5, 2).flatten()),
        fk.nn.AffineCoupling(network(2, 6), passive=2, learned_bound=True, channels=5),
        fk.nn.AffineCoupling(nn.Linear(2, 6), passive=2),
        fk.nn.Permute(5),
    ]
    assert [layer for _, layer in joined([*others, *others], None)] == [*others, *others]


def test_float64_and_deeper_networks_run_layer_by_layer():
    model, x = flow().double(), torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x), apart(model).log_prob(x))
    model = flow(make=lambda a, b: nn.Sequential(network(a, 9), nn.Tanh(), nn.Linear(9, b)))
    torch.testing.assert_close(model.log_prob(x.float()), apart(model).log_prob(x.float()))


def test_a_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"passive=2 channels cannot be kept of x with shape \(4, 1\)"):
        flow().log_prob(torch.randn(4, 1))


def test_compiled_whole():
    model, x = flow(), torch.randn(7, 5)
    found = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, model.log_prob(x), rtol=1e-4, atol=1e-5)
