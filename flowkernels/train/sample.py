"""``flowkernels sample``."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import torch

from . import checkpoint, figures, plane, report
from .config import DTYPES, Config, build_model
from .data import PICTURES
from .errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels sample``."""
    parser.add_argument("checkpoint", type=pathlib.Path, help="checkpoint.pt of flowkernels train, or its directory")
    parser.add_argument("--n", type=int, default=64, help="how many (default 64)")
    parser.add_argument("--temperature", type=float, default=1.0, help="scales the latents' deviation (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("samples.png"), help="default samples.png")


def run(args: argparse.Namespace) -> int:
    """Draw samples into a figure; returns the exit status, 2 for what cannot be done."""
    try:
        if args.n < 1 or not args.temperature >= 0:
            raise CommandError(f"--n must be positive and --temperature not negative; got {args.n}, {args.temperature}")
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
    how = {"temperature": args.temperature, "generator": torch.Generator().manual_seed(args.seed)}
    title = f"{config.title} after {state['step']} steps, temperature {args.temperature:g}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if config.data in PICTURES:
        samples = report.pictures(model, config, args.n, **how)
        figures.sheets(args.out, {title: samples}, config.shape, config.levels)
    else:
        plane.panels(args.out, [{title: model.sample(args.n, **how)}], side=4.6)
    print(args.out)
