"""The change of variables on a grid: a density is one after any number of layers, in closed form or solved for."""

import argparse
import math

import pytest
import torch
from torch import nn

import flowkernels as fk
from flowkernels.train import density
from flowkernels.train.targets import grid


def flow_of(kind, features, depth, generative):
    layer = getattr(fk.nn, kind)(features, depth, generative=generative)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return fk.Flow([layer], fk.bases.DiagonalNormal(features)).double()


@pytest.mark.parametrize("generative", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("kind", ["Planar", "Radial"])
def test_densities_integrate_to_one(kind, features, depth, generative):
    flow = flow_of(kind, features, depth, generative)
    with torch.no_grad():
        if features == 1:
            z = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
            total = flow.log_prob(z[:, None]).exp().sum() * (z[1] - z[0])
        else:
            z, cell = grid(12, 601)
            total = flow.log_prob(z).exp().sum() * cell
    assert math.isclose(total.item(), 1, abs_tol=2e-3)


@pytest.mark.parametrize("kind", ["Planar", "Radial"])
def test_samples_fall_where_the_density_says(kind):
    """The share of samples in each of four quadrants around their median, against the integral there."""
    flow = flow_of(kind, 2, 8, True)
    with torch.no_grad():
        samples = flow.sample(40_000)
        middle = samples.median(0).values
        z, cell = grid(12, 601)
        mass = flow.log_prob(z).exp() * cell
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        inside = ((z - middle) * torch.tensor(signs) > 0).all(1)
        drawn = ((samples - middle) * torch.tensor(signs) > 0).all(1)
        assert abs(mass[inside].sum().item() - drawn.double().mean().item()) < 0.02


def run(*words):
    parser = argparse.ArgumentParser()
    density.add_arguments(parser)
    return density.run(parser.parse_args([str(word) for word in words]))


def test_the_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    assert run("--flow", "planar", "--depth", 2, "--out", tmp_path / "new" / "d.png") == 0
    assert "planar K = 2 in 2-D: integral of the density 1.0" in capsys.readouterr().out
    assert (tmp_path / "new" / "d.png").read_bytes().startswith(b"\x89PNG")
    assert run("--depth", 0) == 2
    assert "got 0" in capsys.readouterr().err
    monkeypatch.setattr(fk.nn.Planar, "forward", lambda self, x, context=None: (x, nn.functional.softplus(x[:, 0])))
    assert run("--flow", "planar", "--depth", 1, "--out", tmp_path / "e.png") == 1  # a log-determinant that is wrong
