"""The figures of a run. matplotlib is optional: without it there are none, said in one line."""

from __future__ import annotations

import math
import pathlib
import statistics
import sys

import torch
from torch import Tensor


def available() -> bool:
    """Whether figures can be drawn; if not, says so on standard error."""
    try:
        import matplotlib
    except ImportError:
        print("no figures: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    return True


def tiled(pictures: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pictures of shape (N, D) as one (height, width) sheet, nearly square, light lines of NaN between them."""
    n = len(pictures)
    columns = max(1, math.ceil(math.sqrt(n)))
    rows = max(1, math.ceil(n / columns))
    _, height, width = shape
    sheet = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1), math.nan)
    for i, picture in enumerate(pictures.cpu().float()):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        sheet[top : top + height, left : left + width] = picture.reshape(shape)[0]
    return sheet


def sheets(path: pathlib.Path, titled: dict[str, Tensor], shape: tuple[int, int, int], levels: int) -> None:
    """Sheets of pictures side by side, each under its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(titled), 4.9), dpi=150, layout="constrained")
    for axes, (title, pictures) in zip(figure.subplots(1, len(titled), squeeze=False)[0], titled.items()):
        axes.imshow(tiled(pictures, shape).numpy(), cmap="gray", vmin=0, vmax=levels - 1, interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    figure.savefig(path)


def curves(
    path: pathlib.Path,
    title: str,
    quantity: str,
    steps: list[int],
    train: list[float],
    held_out: list[tuple[int, float]],
) -> None:
    """The loss over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, train, color="#7fa8d1", linewidth=1, label="training batch")
    if held_out:
        axes.plot(*zip(*held_out), "o-", color="#c44e34", linewidth=1.5, markersize=4, label="held out")
    _label(axes, title, quantity)
    _show_most(axes, train)
    figure.savefig(path)


def comparison(
    path: pathlib.Path,
    title: str,
    quantity: str,
    losses: dict[str, list[float]],
    differences: list[float],
    tolerance: float,
) -> None:
    """Two loss curves, and below them their relative difference at each step beside what is allowed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.4), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    styles = ({"color": "#7fa8d1", "linewidth": 4}, {"color": "#1d3557", "linewidth": 1})
    for (name, values), style in zip(losses.items(), styles):
        above.plot(range(1, len(values) + 1), values, label=name, **style)
    _label(above, title, quantity)
    _show_most(above, next(iter(losses.values())))
    above.set_xlabel("")
    drawn = [d if d > 0 else math.nan for d in differences]  # a logarithmic axis has no place for equal losses
    below.plot(range(1, len(drawn) + 1), drawn, ".", color="#1d3557", markersize=3)
    below.axhline(tolerance, color="#c44e34", linewidth=1, linestyle="--")
    below.annotate(f"allowed: {tolerance:g}", (1, tolerance), (0, -11), textcoords="offset points", fontsize=8)
    below.set_yscale("log")
    below.set_ylabel("relative difference")
    below.set_xlabel("step")
    below.grid(alpha=0.3)
    figure.savefig(path)


def evidence(path: pathlib.Path, results: dict[str, dict[int, list[dict]]]) -> None:
    """The results of each K, a list of them if there are several seeds: bounds of the likelihood, and their gap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.6), dpi=110, layout="constrained")
    bounds, gaps = figure.subplots(1, 2)
    depths = sorted({depth for by_depth in results.values() for depth in by_depth})
    for (name, by_depth), color in zip(results.items(), ("#1d3557", "#c44e34", "#2a9d8f", "#e9a03b")):
        places = [depths.index(depth) for depth in by_depth]
        elbo, likelihood, gap = (
            [[run[key] for run in runs] for runs in by_depth.values()] for key in ("elbo", "log_likelihood", "gap")
        )
        upper, lower = ([-statistics.fmean(v) for v in values] for values in (elbo, likelihood))
        bounds.plot(places, upper, "o-", color=color, label=f"{name}: -ELBO")
        bounds.plot(places, lower, "s--", color=color, label=f"{name}: -log p(x)")
        bounds.fill_between(places, lower, upper, color=color, alpha=0.12)
        gaps.plot(places, [statistics.fmean(v) for v in gap], "-", color=color, label=name)
        for place, values in zip(places, gap):
            gaps.plot([place] * len(values), values, "o", color=color, alpha=0.6)
    for axes, quantity in ((bounds, "held-out nats per picture"), (gaps, "gap log p(x) - ELBO, nats")):
        axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axes.set_xlabel("number K of maps")
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    gaps.set_ylim(bottom=0)
    figure.savefig(path)


def _label(axes, title: str, quantity: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _show_most(axes, values: list[float]) -> None:
    """Fit the axis to all but the first steps, which fall so far that they would flatten the rest."""
    settled = values[len(values) // 20 :]
    margin = 0.06 * (max(settled) - min(settled)) or 1
    axes.set_ylim(min(settled) - margin, max(settled) + margin)
