"""``flowkernels sample``."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch

from . import checkpoint, figures, plane, report
from .config import DTYPES, Config, build_model
from .errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels sample``."""
    parser.add_argument("checkpoint", type=pathlib.Path, help="checkpoint.pt of flowkernels train, or its directory")
    parser.add_argument("--n", type=int, default=64, help="how many (default 64)")
    warm = "scales the latents' deviation (default 1); several make a sheet each"
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0], metavar="T", help=warm)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("samples.png"), help="default samples.png")


def run(args: argparse.Namespace) -> int:
    """Draw samples into a figure; returns the exit status, 2 for what cannot be done."""
    try:
        if args.n < 1:
            raise CommandError(f"--n must be positive; got {args.n}")
        for temperature in args.temperature:
            if not temperature >= 0:
                raise CommandError(f"--temperature must not be negative; got {temperature}")
        state = checkpoint.load(args.checkpoint)
        if not figures.available():
            return 2
        _draw(args, state)
        return 0
    except CommandError as error:
        print(f"flowkernels sample: {error}", file=sys.stderr)
        return 2


def _draw(args: argparse.Namespace, state: dict) -> None:
    config = Config.from_plain(state["config"])
    model: Any = build_model(config).to(DTYPES[config.dtype])
    model.load_state_dict(state["model"])
    model.eval()
    samples = {}
    for temperature in args.temperature:
        how = {"temperature": temperature, "generator": torch.Generator().manual_seed(args.seed)}
        drawn = report.pictures(model, config, args.n, **how) if config.levels else model.sample(args.n, **how)
        samples[f"temperature {temperature:g}"] = drawn
    if len(samples) == 1:
        samples = {f"{config.title} after {state['step']} steps, {title}": drawn for title, drawn in samples.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if config.levels:
        figures.sheets(args.out, samples, figures.Sheet(config.shape, config.levels))
    else:
        plane.panels(args.out, [samples], side=4.6)
    print(args.out)
