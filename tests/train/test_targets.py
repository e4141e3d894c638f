import math

import pytest
import torch

from flowkernels.train import data, points, targets
from flowkernels.train.errors import CommandError


def test_the_paper_s_energies_where_they_are_easy_to_compute_by_hand():
    u1, u2, u3, u4 = (targets.TARGETS[name].energy for name in ("u1", "u2", "u3", "u4"))
    at = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    far = math.log1p(math.exp(-0.5 * (4 / 0.6) ** 2))
    assert math.isclose(u1(at)[0].item(), -far, abs_tol=1e-12)
    assert math.isclose(u2(at)[1].item(), 0, abs_tol=1e-12)
    assert math.isclose(u2(at[:1] + 1)[0].item(), 0.5 * ((1 - math.sin(1.5 * math.pi)) / 0.4) ** 2)
    assert math.isclose(u3(at)[1].item(), -math.log1p(math.exp(-0.5 * (3 / 0.35) ** 2)), abs_tol=1e-12)
    assert math.isclose(u4(at)[1].item(), -math.log1p(math.exp(-0.5 * (1.5 / 0.35) ** 2)), abs_tol=1e-12)


def test_the_walls_are_smooth_and_outside_the_square():
    u2 = targets.TARGETS["u2"]
    inside = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
    assert torch.equal(u2.energy(inside), u2.formula(inside))
    outside = torch.tensor([[4.5, 0.0]], requires_grad=True)
    wall = u2.energy(outside) - u2.formula(outside)
    assert math.isclose(wall.item(), 0.5 * (0.5 / 0.25) ** 2, rel_tol=1e-6)
    edge = torch.tensor([[4.0, 4.0]], requires_grad=True)
    (slope,) = torch.autograd.grad((u2.energy(edge) - u2.formula(edge)).sum(), edge)
    assert not slope.any()


def test_normalisers():
    """Of a normal exactly, and of the paper's second energy by one dimension after the other."""
    normal = targets.Target(lambda z: (z * z).sum(1) / (2 * 0.3**2))
    assert math.isclose(normal.log_normalizer, math.log(2 * math.pi * 0.3**2), abs_tol=1e-6)
    across = 0.4 * math.sqrt(2 * math.pi)
    along = 8 + targets.SOFTNESS * math.sqrt(2 * math.pi)
    assert math.isclose(targets.TARGETS["u2"].log_normalizer, math.log(across * along), abs_tol=1e-4)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_energies_are_finite_far_away_with_their_gradients(name):
    z = torch.tensor([[0.0, 0.0], [30.0, -30.0], [-6.0, 6.0]], requires_grad=True)
    energy = targets.TARGETS[name].energy(z)
    assert energy.isfinite().all()
    assert torch.autograd.grad(energy.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("name", points.NAMES)
def test_points_are_the_same_each_time_and_lie_in_the_square(name):
    one, other = data.load(name), data.load(name)
    assert torch.equal(one.train, other.train)
    assert one.train.shape == (points.TRAIN, 2)
    assert one.held_out.shape == (points.HELD_OUT, 2)
    assert one.train.dtype == torch.float32
    assert one.train.abs().max() < 5
    assert one.train.mean(0).abs().max() < 0.1
    assert not torch.equal(one.train[: points.HELD_OUT], one.held_out)
    with pytest.raises(CommandError, match=f"--data-dir means nothing for {name}"):
        data.load(name, "/tmp")


def test_the_checkerboard_has_eight_squares():
    squares = (points.load("checkerboard").train / 2).floor().long() + 2
    assert ((squares.sum(1) % 2) == 0).all()
    assert len(squares.unique(dim=0)) == 8
