"""Points in the plane, drawn from densities with corners, gaps and holes. Each set is drawn from one seed, for good."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

TRAIN, HELD_OUT = 20_000, 5_000
SEED = 20_240_301


@dataclasses.dataclass(frozen=True)
class Points:
    """Points in the plane, split for good: `train` and `held_out` are float32 of shape (N, 2)."""

    train: Tensor
    held_out: Tensor
    shape: tuple[int, ...] = (2,)
    levels: int = 0  # they are not whole numbers


def _moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaving half-circles of radius 2, with a deviation of 0.15."""
    angle = math.pi * torch.rand(n, generator=generator)
    side = torch.randint(2, (n,), generator=generator) * 2 - 1.0
    x = torch.stack((2 * torch.cos(angle) - 1, 2 * torch.sin(angle) - 0.5), 1) * side[:, None]
    return x + 0.15 * torch.randn(n, 2, generator=generator)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the eight black squares of a board of four by four squares on [-4, 4]²."""
    square = torch.randint(8, (n,), generator=generator)
    row, column = square // 2, square % 2 * 2 + square // 2 % 2
    corner = torch.stack((column, row), 1) * 2.0 - 4
    return corner + 2 * torch.rand(n, 2, generator=generator)


def _pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """Five arms that bend (Johnson et al. 2016)."""
    arm = torch.randint(5, (n,), generator=generator)
    noise = torch.randn(n, 2, generator=generator)
    along, across = 1 + 0.3 * noise[:, 0], 0.1 * noise[:, 1]
    angle = 2 * math.pi / 5 * arm + 0.25 * torch.exp(along)
    turned = along * torch.cos(angle) - across * torch.sin(angle), along * torch.sin(angle) + across * torch.cos(angle)
    return 2 * torch.stack(turned, 1)


def _rings(n: int, generator: torch.Generator) -> Tensor:
    """Three concentric rings of radius 1, 2 and 3, with a deviation of 0.1."""
    radius = torch.randint(1, 4, (n,), generator=generator) + 0.1 * torch.randn(n, generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return radius[:, None] * torch.stack((torch.cos(angle), torch.sin(angle)), 1)


_DRAW: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "moons": _moons,
    "checkerboard": _checkerboard,
    "pinwheel": _pinwheel,
    "rings": _rings,
}
NAMES = tuple(_DRAW)


def load(name: str) -> Points:
    """The points called `name`, one of `NAMES`."""
    generator = torch.Generator().manual_seed(SEED)
    return Points(_DRAW[name](TRAIN, generator), _DRAW[name](HELD_OUT, generator))
