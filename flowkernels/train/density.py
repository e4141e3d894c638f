"""``flowkernels density``: flows drawn at random, whose densities integrate to 1."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch

from ..flows import Flow
from . import figures, plane
from .config import LAYERS
from .errors import CommandError
from .targets import grid

DEPTHS = (1, 2, 8)
WIDE = 20.0  # how far the grids reach: the flows that are drawn move no point as far from a standard normal's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels density``."""
    parser.add_argument(
        "--flow", choices=tuple(LAYERS), nargs="+", default=list(LAYERS), metavar="FLOW", help="planar, radial (both)"
    )
    parser.add_argument("--depth", type=int, nargs="+", default=list(DEPTHS), metavar="K", help="default 1 2 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("density.png"), help="default density.png")


def run(args: argparse.Namespace) -> int:
    """Print the integrals and draw the densities; returns the exit status, 1 for an integral that is not 1."""
    try:
        if min(args.depth) < 1:
            raise CommandError(f"--depth must be positive; got {min(args.depth)}")
        table = {(f, d, k): _flow(f, d, k, args.seed) for f in args.flow for d in (1, 2) for k in args.depth}
    except CommandError as error:
        print(f"flowkernels density: {error}", file=sys.stderr)
        return 2
    integrals = {key: integral(flow) for key, flow in table.items()}
    for (name, features, depth), value in integrals.items():
        print(f"{name} K = {depth} in {features}-D: integral of the density {value:.6f}")
    if figures.available():
        args.out.parent.mkdir(parents=True, exist_ok=True)
        _draw(args.out, table, integrals)
        print(args.out)
    return 0 if all(abs(value - 1) < 1e-3 for value in integrals.values()) else 1


def _flow(name: str, features: int, depth: int, seed: int) -> Flow:
    """A standard normal through maps far from the identity, in float64; its log_prob undoes them by the solve."""
    torch.manual_seed(seed)
    layer = LAYERS[name](features, depth)
    with torch.no_grad():
        for parameter, values in layer.named_parameters():
            if parameter != "w":  # which keeps its length of 1: near 0 it would throw points far away
                values += torch.randn_like(values)
    return Flow([layer], event_shape=(features,)).double()


@torch.no_grad()
def integral(flow: Any) -> float:
    """The sum of the density over a fine grid, of one or two dimensions, times the size of a cell."""
    if flow.event_shape[0] == 1:
        z = torch.linspace(-WIDE, WIDE, 80_001, dtype=torch.float64)[:, None]
        return flow.log_prob(z).exp().sum().item() * 2 * WIDE / (len(z) - 1)
    z, cell = grid(WIDE, 1001)
    return sum(flow.log_prob(part).exp().sum().item() for part in z.split(2**16)) * cell


def _draw(path: pathlib.Path, table: dict[tuple, Flow], integrals: dict[tuple, float]) -> None:
    """A row for each kind of flow, its densities on the line and then in the plane."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _, _ in table))
    columns = len(table) // len(names)
    figure = Figure(figsize=(2 * columns, 2.3 * len(names)), dpi=110, layout="constrained")
    panels = figure.subplots(len(names), columns, squeeze=False).flat
    for axes, ((name, features, depth), flow) in zip(panels, table.items()):
        axes.set_title(f"{name}, {features}-D, K = {depth}\n∫ p = {integrals[name, features, depth]:.5f}", fontsize=9)
        if features == 2:
            plane.panel(axes, plane.density(flow))
            continue
        x = torch.linspace(-plane.LIMIT, plane.LIMIT, 1001, dtype=torch.float64)
        density = flow.log_prob(x[:, None]).exp().detach()
        axes.fill_between(x, density, color="#7fa8d1", alpha=0.5)
        axes.plot(x, density, color="#1d3557", linewidth=1)
        axes.set(xlim=(-plane.LIMIT, plane.LIMIT), ylim=(0, None), yticks=[])
    figure.savefig(path)
