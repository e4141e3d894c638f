"""The figures of a run. matplotlib is optional: without it there are none, said in one line."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import statistics
import sys

import torch
from torch import Tensor

COLORS = ("#1d3557", "#c44e34", "#2a9d8f", "#e9a03b")


def available() -> bool:
    """Whether figures can be drawn; if not, says so on standard error."""
    try:
        import matplotlib
    except ImportError:
        print("no figures: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    return True


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Pictures side by side: their shape (channels, height, width), their levels, and how many there are in a row.

    `columns` of 0 makes the sheet nearly square.
    """

    shape: tuple[int, ...]
    levels: int
    columns: int = 0

    def tiled(self, pictures: Tensor) -> Tensor:
        """N pictures as one image (height, width, 3) of values from 0 to 1, white lines between them."""
        columns = self.columns or max(1, math.ceil(math.sqrt(len(pictures))))
        rows = max(1, math.ceil(len(pictures) / columns))
        _, height, width = self.shape
        sheet = torch.ones(rows * (height + 1) + 1, columns * (width + 1) + 1, 3)
        for i, picture in enumerate(pictures.cpu().float() / (self.levels - 1)):
            top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
            sheet[top : top + height, left : left + width] = picture.reshape(self.shape).permute(1, 2, 0)
        return sheet


def sheets(path: pathlib.Path, titled: dict[str, Tensor], sheet: Sheet, side: float = 4.6) -> None:
    """Sheets of pictures side by side, each under its title."""
    from matplotlib.figure import Figure

    drawn = {title: sheet.tiled(pictures) for title, pictures in titled.items()}
    height, width, _ = next(iter(drawn.values())).shape
    figure = Figure(figsize=(side * len(drawn), side * height / width + 0.3), dpi=150, layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items()):
        axes.imshow(image.numpy(), interpolation="nearest")
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
    for (name, by_depth), color in zip(results.items(), COLORS):
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


@dataclasses.dataclass(frozen=True)
class Bits:
    """Of a run: its name, (step, bits per dimension of held-out pictures), and the final estimate with its error."""

    name: str
    held_out: list[tuple[int, float]]
    bpd: float
    error: float


def bits(path: pathlib.Path, runs: list[Bits]) -> None:
    """Bits per dimension of held-out pictures as runs went, and what each came to with its standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (run, color) in enumerate(zip(runs, itertools.cycle(COLORS))):
        left.plot(*zip(*run.held_out), "o-", color=color, markersize=3, label=run.name)
        right.errorbar([place], [run.bpd], yerr=[run.error], fmt="o", color=color, capsize=4)
        right.annotate(f"{run.bpd:.3f}", (place, run.bpd), (7, -3), textcoords="offset points", fontsize=8)
    _label(left, "held out, one draw of the noise", "bits per dimension")
    _show_most(left, [bpd for run in runs for _, bpd in run.held_out])
    right.set_title("at the end, with standard error", fontsize=11)
    right.set_xticks(range(len(runs)), [run.name.replace(" on ", "\n") for run in runs], fontsize=8)
    right.set_xlim(-0.5, len(runs) - 0.3)
    right.grid(alpha=0.3)
    figure.savefig(path)


def _label(axes, title: str, quantity: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _show_most(axes, values: list[float]) -> None:
    """Fit the axis to all but the first steps, which are so high that they would flatten the rest."""
    settled = sorted(values)[: len(values) - len(values) // 20]
    margin = 0.06 * (settled[-1] - settled[0]) or 1
    axes.set_ylim(settled[0] - margin, settled[-1] + margin)
