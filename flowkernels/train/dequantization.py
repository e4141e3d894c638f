"""``flowkernels dequantization``: one flow fitted to whole numbers as they are, with uniform and with learned noise."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bases import DiagonalNormal
from ..flows import Flow
from ..functional import dequantize
from ..nn import AmortizedPlanar, Dequantize, Planar, VariationalDequantize
from . import figures
from .errors import CommandError
from .progress import Progress

SHARES = (0.20, 0.04, 0.24, 0.10, 0.02, 0.22, 0.06, 0.12)  # of the whole numbers 0 to 7
LEVELS = len(SHARES)
DEPTH, NOISE_DEPTH = 24, 6
BATCH, DRAWS = 512, 200_000


class Centred(nn.Module):
    """No dequantization: every whole number stays a point, in the middle of its bin."""

    dequantizes = True  # as it were, so that a flow tells its bits

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return dequantize(x, torch.full(x.shape, 0.5), levels=LEVELS)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("its samples are not drawn")


class NoiseOfEach(nn.Module):
    """Planar maps of the noise, of their own for each whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = AmortizedPlanar(1, NOISE_DEPTH, context_features=LEVELS)

    def inverse(self, y: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = ((image + 1) * (LEVELS - 1) / 2).round().long()
        return self.maps.inverse(y, F.one_hot(x[:, 0], LEVELS).to(y.dtype))


DEQUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "none": Centred,
    "uniform": lambda: Dequantize(LEVELS),
    "variational": lambda: VariationalDequantize([NoiseOfEach()], LEVELS),
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted flow: its bits per whole number, the places to which data were moved, and its density over [0, 8]."""

    bits: float
    places: Tensor
    density: tuple[Tensor, Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels dequantization``."""
    parser.add_argument("--steps", type=int, default=3000, help="of each fit (default 3000)")
    parser.add_argument("--seed", type=int, default=0)
    out = pathlib.Path("dequantization.png")
    parser.add_argument("--out", type=pathlib.Path, default=out, help=f"default {out}")


def run(args: argparse.Namespace) -> int:
    """Print the bits of each fit and draw the densities; returns the exit status."""
    try:
        if args.steps < 1:
            raise CommandError(f"--steps must be positive; got {args.steps}")
    except CommandError as error:
        print(f"flowkernels dequantization: {error}", file=sys.stderr)
        return 2
    print(f"entropy of the data {entropy():.4f} bits, below which no model of whole numbers can come")
    fits = {name: fit(name, args.steps, args.seed) for name in DEQUANTIZERS}
    for name, found in fits.items():
        print(f"dequantization {name}: {found.bits:.4f} bits")
    if figures.available():
        args.out.parent.mkdir(parents=True, exist_ok=True)
        _draw(args.out, fits)
        print(args.out)
    return 0


def entropy() -> float:
    """Of the data, in bits."""
    return -sum(share * math.log2(share) for share in SHARES)


def _drawn(n: int) -> Tensor:
    return torch.multinomial(torch.tensor(SHARES), n, replacement=True)[:, None].to(torch.uint8)


def fit(name: str, steps: int, seed: int) -> Fit:
    """Fit planar maps to the whole numbers after one kind of dequantization."""
    torch.manual_seed(seed)
    layer = DEQUANTIZERS[name]()
    flow = Flow([layer, Planar(1, DEPTH, generative=False)], DiagonalNormal(1))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
    progress = Progress(0, steps)
    for step in range(1, steps + 1):
        loss = flow.bits_per_dim(_drawn(BATCH)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.show(step, f"{name}: {loss:.3f} bits")
    progress.close()
    return _described(flow, layer)


@torch.no_grad()
def _described(flow: Flow, layer: nn.Module) -> Fit:
    x = _drawn(DRAWS)
    places = LEVELS * torch.sigmoid(layer(x)[0])
    v = (torch.arange(4000) + 0.5) / 4000 * LEVELS
    z, log_det = dequantize(v.floor()[:, None], (v - v.floor())[:, None], levels=LEVELS)
    log_density = log_det + Flow(list(flow.layers)[1:], flow.base).log_prob(z)
    return Fit(flow.bits_per_dim(x).mean().item(), places[:, 0], (v, log_density.exp()))


LIGHT = "#bfd3e8"
TITLES = {
    "none": "no dequantization: peaks without bound",
    "uniform": "uniform: boxes",
    "variational": "variational: smooth",
}


def _draw(path: pathlib.Path, fits: dict[str, Fit]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.2, 3.1), dpi=110, layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(fits)), fits.items()):
        v, density = found.density
        if name == "none":  # the peaks are a thousand times as high as the rest
            axes.vlines(torch.arange(LEVELS) + 0.5, 1e-3, SHARES, color=LIGHT, linewidth=5, label="data: points")
            axes.set(yscale="log", ylim=(1e-3, 2 * density.max().item()))
        else:
            shares = found.places.histogram(bins=160, range=(0, LEVELS), density=True).hist
            axes.stairs(shares, torch.linspace(0, LEVELS, 161), fill=True, color=LIGHT, label="data + noise")
            axes.set(ylim=(0, 1.15 * density.quantile(0.99).item()), yticks=[])
        axes.plot(v, density, color="#1d3557", linewidth=1, label="flow")
        axes.set_title(f"{TITLES[name]}\n{found.bits:.3f} bits (entropy {entropy():.3f})", fontsize=9)
        axes.set(xlim=(0, LEVELS), xticks=range(LEVELS + 1))
        axes.legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(path)
