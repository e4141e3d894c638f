import dataclasses
import math

import pytest
import torch

import flowkernels as fk
from flowkernels.train import config, objective, targets
from flowkernels.train.pictures import Pictures


def make(flow, data, **changes):
    known = {**config.SETTINGS[flow], **changes}
    pictures = {"shape": (1, 2, 2), "levels": 17} if data == "digits" else {"shape": (2,), "levels": 0}
    return config.Config(data=data, flow=flow, **pictures, **known)


PICTURES = Pictures(*(torch.randint(17, (n, 1, 2, 2)).to(torch.uint8) for n in (40, 8)), 17)


def test_annealing_is_that_of_the_paper():
    fit = objective.objective(make("planar", "u1", anneal=10_000), targets.TARGETS["u1"])
    assert fit._beta(0) == 0.01
    assert math.isclose(fit._beta(5000), 0.51)
    assert fit._beta(20_000) == 1
    never = objective.objective(make("planar", "u1", anneal=0), targets.TARGETS["u1"])
    assert never._beta(0) == 1


def test_a_model_that_is_the_target_has_no_divergence():
    normal = targets.Target(lambda z: (z * z).sum(1) / 2)
    fit = objective.FreeEnergy(make("planar", "u1", anneal=10), normal)
    flow = fk.Flow([fk.nn.Planar(2, 0)], fk.bases.DiagonalNormal(2))
    found = fit.results(flow, torch.empty(10, 0), 1000)
    assert abs(found["kl"]) < 1e-3
    torch.nn.init.constant_(flow.base.mean, 0.5)  # KL between normals: half the squared distance
    found = fit.results(flow, torch.empty(10, 0), 100_000)
    assert abs(found["kl"] - 0.25) < 4 * found["kl_error"] + 1e-3
    assert math.isclose(found["kl_error"], 0.5**0.5 / 100_000**0.5, rel_tol=0.05)
    annealed = fit.loss(flow, torch.empty(1000, 0), 0)
    assert annealed < fit.loss(flow, torch.empty(1000, 0), 100)


@pytest.mark.parametrize("binarize", ["sample", "threshold"])
def test_pictures_are_made_binary(binarize):
    elbo = objective.NegativeElbo(make("planar-vae", "digits", anneal=0, binarize=binarize), PICTURES)
    rows = torch.tensor([[0.0, 16.0, 8.0, 7.0]]).repeat(4000, 1)
    share = elbo._binary(rows).mean(0)
    expected = [0, 1, 0.5, 7 / 16] if binarize == "sample" else [0, 1, 1, 0]
    torch.testing.assert_close(share, torch.tensor(expected).float(), rtol=0, atol=0.04)


def exact_log_likelihood(model, x):
    """log p(x) by a sum over a grid of the two latents."""
    z, cell = targets.grid(7, 301)
    log_prior = -0.5 * (z * z).sum(1) - math.log(2 * math.pi)
    logits = model.decoder(z)
    log_given = -torch.nn.functional.softplus((1 - 2 * x[:, None]) * logits).sum(2)
    return torch.logsumexp(log_given + log_prior, 1) + math.log(cell)


@pytest.mark.parametrize("flow", ["planar", "radial"])
def test_the_bounds_of_an_autoencoder_lie_below_the_likelihood_and_reach_it(flow):
    model = fk.models.vae(4, latent=2, hidden=(8,), flow=flow, depth=3).double()
    with torch.no_grad():
        for parameter in model.posterior.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for parameter in model.decoder.parameters():
            torch.nn.init.normal_(parameter)
    x = torch.randint(2, (6, 4)).double()
    with torch.no_grad():
        exact = exact_log_likelihood(model, x)
        elbo = -torch.stack([model(x) for _ in range(500)]).mean(0)
        tight = model.log_likelihood(x, 20_000, chunk=5000)
    assert (elbo < exact).all()
    torch.testing.assert_close(tight, exact, rtol=0, atol=0.1)  # the weights have a long tail


def test_one_importance_sample_is_the_elbo_and_beta_tempers():
    model = fk.models.vae(4, latent=2, hidden=(8,))
    x = torch.randint(2, (6, 4)).float()
    values = []
    for evaluate in (lambda: -model(x), lambda: model.log_likelihood(x, 1)):
        torch.manual_seed(1)
        values.append(evaluate())
    torch.testing.assert_close(*values)
    torch.manual_seed(1)
    entropy = model(x, beta=0.0)
    torch.manual_seed(1)
    torch.testing.assert_close(model(x, beta=0.5), (entropy - values[0]) / 2)


def test_results_of_an_autoencoder():
    settings = make("planar-vae", "digits", anneal=0, latent=2, hidden=(8,))
    elbo = objective.NegativeElbo(settings, PICTURES)
    model = config.build_model(settings)
    with torch.no_grad():
        found = elbo.results(model, PICTURES.held_out.flatten(1), 50)
    assert set(found) == {"elbo", "log_likelihood", "gap"}
    assert math.isclose(found["gap"], found["log_likelihood"] - found["elbo"])


def test_the_direction_in_closed_form_is_the_one_that_training_needs():
    assert config.build_model(make("planar", "u1", anneal=1)).layers[0].generative
    assert not config.build_model(make("radial", "moons")).layers[0].generative
    pictures = config.build_model(make("planar", "digits"))
    assert [type(layer).__name__ for layer in pictures.layers] == ["Dequantize", "Planar"]
    assert config.build_model(make("realnvp", "rings")).event_shape == (2,)


def test_a_configuration_survives_a_checkpoint():
    one = make("planar-vae", "digits", anneal=5)
    assert config.Config.from_plain(one.plain()) == one
    assert dataclasses.replace(one, depth=3).title == "planar-vae (K = 3) on digits"
