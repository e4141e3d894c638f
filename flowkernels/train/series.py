"""Several runs side by side: one table, table.md and table.json, and one figure."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
from typing import Any

from . import checkpoint, figures, plane, report
from .config import DTYPES, Config, build_model

# Names in result.json, their headings, and their signs in the table.
COLUMNS = (
    ("elbo", "-ELBO", -1),
    ("log_likelihood", "-log p(x)", -1),
    ("gap", "gap", 1),
    ("kl", "KL", 1),
    ("held_out_bpd", "held-out bits/dim", 1),
    ("held_out_nats", "held-out nats", 1),
    ("ms_per_step", "ms a step", 1),
)


def write(root: pathlib.Path, runs: list[argparse.Namespace]) -> None:
    """Read the results of the runs, write the table and the figures to `root`, and print the table."""
    results = [report.read(each.out) for each in runs]
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
    if rows := _panels([each for each in runs if each.data not in report.PICTURES]):
        plane.panels(root / "densities.png", rows)
        print(f"figure: {root / 'densities.png'}")


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
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


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
    return model
