"""The workloads of rational-quadratic splines."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch

from .. import functional
from ..ops.cost import Cost
from ..ops.rational_quadratic_spline import SplineForm
from ..ops.rational_quadratic_spline import cost as spline_cost
from . import natural, peers
from .workloads import DEFAULT, FORWARD, FULL, INVERSE, QUICK, TRAIN, Pair, Problem, Promise, Workload

SPLINE = "rational_quadratic_spline"
FORM = SplineForm(natural.SPLINE_BINS, natural.SPLINE_BOUND, min_derivative=natural.LEAST)

# Rows and features; over nflows on a CPU: at least, and what we are out for.
SHAPES = ((512, 8), (4096, 16), (65536, 8))
PROMISES = {FORWARD: (20, 40), INVERSE: (20, 40), TRAIN: (15, 25)}


def _problem(device: torch.device, shape: tuple[int, int]) -> Problem:
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(shape, generator=random) - 1
    x = (1.2 * natural.SPLINE_BOUND * x).to(device)  # a sixth is outside of the box
    # Nearly straight: where a spline is steep, knots that are known up to a rounding make results that are not.
    raw = 0.1 * torch.randn(*shape, FORM.parameters, generator=random)
    raw[..., 2 * FORM.bins :] += math.log(math.expm1(1 - FORM.min_derivative))
    raw = raw.flatten(1).to(device)

    def ours(x: torch.Tensor, raw: torch.Tensor, inverse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return functional.rational_quadratic_spline(x, raw, form=FORM, inverse=inverse)

    def cost(mode: str) -> Cost:
        total = spline_cost.forward(x, raw, None, FORM, 0, mode == INVERSE)
        if mode == TRAIN:
            total += spline_cost.backward(x, x.new_empty(x.shape[0]), x, raw, None, FORM, 0, False)
        return total

    return Problem(
        (x, raw),
        Pair(natural.spline, natural.inverse_spline),
        Pair(ours, functools.partial(ours, inverse=True)),
        {"nflows": functools.partial(peers.nflows_spline, x, raw)},
        cost,
        (4, 4 * shape[1], 4096, 4096),  # among many points some are at the very knots, where gradients jump
    )


def workloads() -> Iterator[Workload]:
    """Every workload of the op."""
    for rows, features in SHAPES:
        yield Workload(
            SPLINE,
            f"{rows}x{features} K={FORM.bins}",
            functools.partial(_problem, shape=(rows, features)),
            level=QUICK if rows == SHAPES[0][0] else DEFAULT,
            compiled=DEFAULT if rows == SHAPES[1][0] else FULL,
            target=True,
            promises=tuple(Promise(mode, "nflows", *limits) for mode, limits in PROMISES.items()),
        )
