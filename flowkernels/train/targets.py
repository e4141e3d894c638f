"""Unnormalised densities in the plane to which flows are fitted by variational inference."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

SOFTNESS = 0.25  # of the walls of the square [-4, 4]²
EPOCH, HELD_OUT = 2**16, 10_000


def grid(limit: float, points: int) -> tuple[Tensor, float]:
    """A square grid on [-limit, limit]², (points², 2), the first coordinate varying slowest; and a cell's area."""
    axis = torch.linspace(-limit, limit, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * limit / (points - 1)) ** 2


@dataclasses.dataclass(frozen=True)
class Target:
    """The density exp(-U(z)) / Z over the plane, with walls around [-4, 4]² that make every U normalisable.

    U is `formula` plus Σ_i max(0, |z_i| - 4)² / (2 · 0.25²), which is smooth to first order.
    """

    formula: Callable[[Tensor], Tensor]
    train: Tensor = dataclasses.field(default_factory=lambda: torch.empty(EPOCH, 0))  # a row stands for a draw
    held_out: Tensor = dataclasses.field(default_factory=lambda: torch.empty(HELD_OUT, 0))
    shape: tuple[int, ...] = (2,)
    levels: int = 0

    def energy(self, z: Tensor) -> Tensor:
        """U of each row, in nats."""
        outside = (z.abs() - 4).clamp(min=0) / SOFTNESS
        return self.formula(z) + 0.5 * (outside * outside).sum(1)

    @functools.cached_property
    def log_normalizer(self) -> float:
        """log Z, by a sum over a grid on [-6, 6]², where the walls have brought the density below exp(-32)."""
        z, cell = grid(6, 1201)
        return torch.logsumexp(-self.energy(z), 0).item() + math.log(cell)


def _bell(x: Tensor, center: float, width: float) -> Tensor:
    return -0.5 * ((x - center) / width) ** 2


def _wave(z: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * z[:, 0])


def _u1(z: Tensor) -> Tensor:
    ring = 0.5 * ((z.norm(dim=1) - 2) / 0.4) ** 2
    return ring - torch.logaddexp(_bell(z[:, 0], 2, 0.6), _bell(z[:, 0], -2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return -_bell(z[:, 1] - _wave(z), 0, 0.4)


def _u3(z: Tensor) -> Tensor:
    above, apart = z[:, 1] - _wave(z), 3 * torch.exp(_bell(z[:, 0], 1, 0.6))
    return -torch.logaddexp(_bell(above, 0, 0.35), _bell(above + apart, 0, 0.35))


def _u4(z: Tensor) -> Tensor:
    above, apart = z[:, 1] - _wave(z), 3 * torch.sigmoid((z[:, 0] - 1) / 0.3)
    return -torch.logaddexp(_bell(above, 0, 0.4), _bell(above + apart, 0, 0.35))


def _bimodal(z: Tensor) -> Tensor:
    """The posterior of z ~ N(0, 4 I) given noisy z0² = 4 and z1 - z0 / 2 = 0: z0 is known but for its sign."""
    prior = (z * z).sum(1) / 8
    return prior - _bell(z[:, 0] ** 2, 4, 1.0) - _bell(z[:, 1] - z[:, 0] / 2, 0, 0.5)


# The first four are those of table 1 of Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015).
TARGETS = {name: Target(u) for name, u in zip(("u1", "u2", "u3", "u4", "bimodal"), (_u1, _u2, _u3, _u4, _bimodal))}
