"""Densities over the plane, evaluated and drawn."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import Tensor

from .points import Points
from .targets import Target, grid

LIMIT = 4.5
POINTS = 181


@torch.no_grad()
def density(flow: Any) -> Tensor:
    """The density of a flow over the square that is drawn, rows from bottom to top."""
    place = next(flow.parameters())
    z, _ = grid(LIMIT, POINTS)
    return flow.log_prob(z.to(place.device, place.dtype)).exp().reshape(POINTS, POINTS).T.cpu()


def truth(known: Points | Target) -> Tensor:
    """What a flow is to come to: the density of a target, or points of the data."""
    if isinstance(known, Points):
        return known.held_out
    z, _ = grid(LIMIT, POINTS)
    return (-known.energy(z) - known.log_normalizer).exp().reshape(POINTS, POINTS).T


def panels(path: pathlib.Path, rows: list[dict[str, Tensor]], side: float = 1.9) -> None:
    """Rows of panels, each a density over the square as an image, or points of shape (N, 2), under its title.

    The colours of a row have one scale, that of its first density but for its highest peaks.
    """
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(side * columns, (side + 0.35) * len(rows)), dpi=85, layout="constrained")
    for axes_row, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows):
        brightest = next((v.quantile(0.995).item() for v in row.values() if v.shape[1] != 2), None)
        for axes, (title, values) in zip(axes_row, row.items()):
            panel(axes, values, brightest)
            axes.set_title(title, fontsize=9)
    figure.savefig(path)


def panel(axes: Any, values: Tensor, brightest: float | None = None) -> None:
    """One panel of `panels`."""
    sides = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    if values.shape[1] == 2:
        axes.plot(*values.T.numpy(), ".", color="#1d3557", markersize=1, alpha=0.4, markeredgewidth=0)
    else:
        axes.imshow(values.numpy(), origin="lower", extent=sides, cmap="Blues", vmin=0, vmax=brightest)
    axes.set(xlim=sides[:2], ylim=sides[2:], xticks=[], yticks=[], aspect="equal")
