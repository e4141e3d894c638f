"""Several runs side by side: one table, table.md and table.json, and one figure."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
from typing import Any

import torch

from . import checkpoint, figures, plane, report
from .config import DTYPES, IMAGE_FLOWS, Config, build_model
from .data import has_pictures

# Names in result.json, their headings, and their signs in the table. ± is a standard deviation over seeds.
COLUMNS = (
    ("elbo", "-ELBO", -1),
    ("log_likelihood", "-log p(x)", -1),
    ("gap", "gap", 1),
    ("kl", "KL", 1),
    ("bpd", "held-out bits/dim", 1),
    ("bpd_error", "standard error", 1),
    ("bpd_ahead", "minus the first", 1),
    ("bpd_ahead_error", "standard error of that", 1),
    ("held_out_nats", "held-out nats", 1),
    ("ms_per_step", "ms a step", 1),
    ("peak_mb", "peak MB", 1),
    ("images_per_second", "samples/s", 1),
)


def write(root: pathlib.Path, runs: list[argparse.Namespace]) -> None:
    """Read the results of the runs, write the table and the figures to `root`, and print the table."""
    results = _compared(runs)
    checkpoint.replace_text(root / "table.json", json.dumps(results, indent=1) + "\n")
    table = _table(_grouped(results))
    checkpoint.replace_text(root / "table.md", table)
    print(table, end="")
    if any(result["data"] == "mnist" and "elbo" in result for result in results):
        print(report.PAPER)
    if not figures.available():
        return
    if evidence := _evidence(_grouped([result for result in results if "elbo" in result])):
        figures.evidence(root / "evidence.png", evidence)
        print(f"figure: {root / 'evidence.png'}")
    if measured := [each for each, result in zip(runs, results) if "bpd" in result]:
        figures.bits(root / "bpd.png", [_bits(each) for each in measured])
        print(f"figure: {root / 'bpd.png'}")
    if drawn := [each for each in runs if each.flow in IMAGE_FLOWS]:
        _draw_samples(root / "samples.png", drawn)
        print(f"figure: {root / 'samples.png'}")
    if rows := _panels([each for each in runs if not has_pictures(each.data)]):
        plane.panels(root / "densities.png", rows)
        print(f"figure: {root / 'densities.png'}")


def _compared(runs: list[argparse.Namespace]) -> list[dict[str, Any]]:
    """The results of the runs; bits per dimension also less those of the first run on the same pictures.

    Pictures differ far more than flows do, so the differences picture by picture have a far smaller standard error.
    """
    results = [report.read(each.out) for each in runs]
    firsts: dict[tuple, list[float]] = {}
    for each, result in zip(runs, results):
        if "bpd" not in result:
            continue
        values = report.read_bpd(each.out)
        first = firsts.setdefault((each.data, each.seed), values)
        if first is not values and len(first) == len(values):
            differences = [value - other for value, other in zip(values, first)]
            result["bpd_ahead"] = statistics.fmean(differences)
            result["bpd_ahead_error"] = statistics.stdev(differences) / len(differences) ** 0.5
    return results


def _grouped(results: list[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """The results of runs that differ by the seed alone, together."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["data"], result["flow"], result["depth"]), []).append(result)
    return groups


def spread(values: list[float], sign: int = 1) -> str:
    """The mean, and the standard deviation where there are several; nothing of nothing."""
    if not values:
        return ""
    mean = sign * statistics.fmean(values)
    digits = 3 if abs(mean) < 100 else 0
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _table(groups: dict[tuple, list[dict[str, Any]]]) -> str:
    known = {name for results in groups.values() for result in results for name in result}
    known -= {"held_out_nats"} if known & {"elbo", "kl"} else set()  # which say it better
    columns = [column for column in COLUMNS if column[0] in known]
    lines = [["data", "flow", "K", *(heading for _, heading, _ in columns)]]
    lines.append(["---"] * len(lines[0]))
    for (data, flow, depth), results in groups.items():
        cells = [spread([r[name] for r in results if name in r], sign) for name, _, sign in columns]
        lines.append([data, flow, "" if depth is None else str(depth), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _evidence(groups: dict[tuple, list[dict[str, Any]]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """For each flow and data, the results of each K."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for (data, flow, depth), results in groups.items():
        found.setdefault(f"{flow}, {data}", {})[depth] = results
    return found


def _bits(run: argparse.Namespace) -> figures.Bits:
    """What `figures.bits` draws of a run."""
    result = report.read(run.out)
    seed = "" if run.seed is None else f", seed {run.seed}"
    _, _, held_out = checkpoint.read_metrics(run.out / "metrics.csv")
    name = Config.from_plain(checkpoint.load(run.out)["config"]).title + seed
    return figures.Bits(name, held_out, result["bpd"], result["bpd_error"])


def _draw_samples(path: pathlib.Path, runs: list[argparse.Namespace]) -> None:
    """Samples of each of several image flows on the first of their data."""
    known = runs[0].loaded
    how = {"generator": torch.Generator().manual_seed(0)}
    models = {_bits(each).name: _model(each.out) for each in runs if each.data == runs[0].data}
    samples = {name: model.sample(36, **how) for name, model in models.items()}
    figures.sheets(path, samples, figures.Sheet(known.shape, known.levels), side=3.4)


def _panels(runs: list[argparse.Namespace]) -> list[dict[str, Any]]:
    """A row for each set of data: the truth, then the density that each run came to."""
    rows = []
    for data, group in itertools.groupby(runs, lambda each: each.data):
        row: dict[str, Any] = {}
        for each in group:
            row.setdefault(data, plane.truth(each.loaded))
            result = report.read(each.out)
            amount = f"KL {result['kl']:.3f}" if "kl" in result else f"{result['held_out_nats']:.2f} nats"
            name = "normal" if each.depth == 0 else each.flow + ("" if each.depth is None else f" K={each.depth}")
            title = f"{name}: {amount}" + (f" (seed {each.seed})" if each.seed is not None else "")
            row[title] = plane.density(_model(each.out))
        rows.append(row)
    return rows


def _model(out: pathlib.Path) -> Any:
    """The model of a checkpoint, on the CPU."""
    state = checkpoint.load(out)
    config = Config.from_plain(state["config"])
    model = build_model(config).to(DTYPES[config.dtype])
    model.load_state_dict(state["model"])
    return model.eval()
