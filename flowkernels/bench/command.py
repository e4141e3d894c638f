"""``flowkernels bench``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
import time

import torch

from . import report
from .measure import WRONG, Result, measure
from .memory import keep_freed
from .workloads import DEFAULT, FULL, QUICK, Workload, ops, select

SECONDS = {QUICK: 0.3, DEFAULT: 0.4, FULL: 1.5}  # of timing, per workload and mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels bench``."""
    parser.add_argument("--op", choices=ops(), help="this operation only")
    parser.add_argument("--device", default="cpu", help="default cpu")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a few workloads, without torch.compile: half a minute")
    extent.add_argument("--full", action="store_true", help="every workload, torch.compile for each, scaling curves")
    parser.add_argument("--json", type=pathlib.Path, metavar="F", help="write everything that was measured to F")
    parser.add_argument("--plot", type=pathlib.Path, metavar="F", help="draw speed-ups and scaling curves to F")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit status: 0, 1 if anything is wrong, 2 for what cannot be done."""
    problem = _problem(args)
    if problem is not None:
        print(f"flowkernels bench: {problem}", file=sys.stderr)
        return 2
    start = time.monotonic()
    device = torch.empty(0, device=args.device).device
    level = QUICK if args.quick else FULL if args.full else DEFAULT
    facts = report.header(device, keep_freed())
    results = _measure_all(select(args.op, level, scaling=args.plot is not None), level, device)
    elapsed = time.monotonic() - start
    print(report.text(facts, results))
    print(f"took {elapsed:.0f} s")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report.as_json(facts, results, elapsed), indent=1) + "\n")
    if args.plot is not None:
        from . import plot

        plot.draw(args.plot, facts, results)
    return 1 if any(r.status == WRONG for r in results) else 0


def _problem(args: argparse.Namespace) -> str | None:
    """Why the run cannot be made: known before it has taken minutes."""
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        return f"--device {args.device} cannot be used: {str(error).splitlines()[0]}"
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib (pip install matplotlib)"
    return None


def _measure_all(workloads: list[Workload], level: int, device: torch.device) -> list[Result]:
    pairs = [(workload, mode) for workload in workloads for mode in workload.modes_of(level)]
    progress = _Progress(len(pairs))
    results = []
    for workload in workloads:
        try:
            built = workload.build(device)
        except ImportError as missing:  # of the library whose model it is
            print(f"{workload.name}: not measured: {missing}", file=sys.stderr)
            continue
        compiling = workload.compiled is not None and level >= workload.compiled
        for mode in workload.modes_of(level):
            progress.next(f"{workload.name}, {mode}")
            with torch.no_grad():
                compiled = compiling and (level == FULL or mode != "inverse")
                results.append(measure(workload, mode, built, compiled, SECONDS[level], progress.say))
    progress.close()
    return results


class _Progress:
    """What is being measured, on standard error: one line that is rewritten on a terminal, else a line each."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0
        self.name = ""
        self.terminal = sys.stderr.isatty()

    def next(self, name: str) -> None:
        self.number += 1
        self.name = name
        if not self.terminal:
            print(f"[{self.number}/{self.total}] {name}", file=sys.stderr, flush=True)

    def say(self, doing: str) -> None:
        if self.terminal:
            print(f"\r[{self.number}/{self.total}] {self.name}: {doing}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
