"""The figure of a run: speed-ups as bars, and times along the batch and the dimension."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from .measure import Result
from .report import seconds
from .workloads import COMPILE, EAGER, FORWARD, OURS, TRAIN

LIBRARY = "other library"
COLOURS = {EAGER: "#7fa8d1", COMPILE: "#e0a458", LIBRARY: "#8f7fb5", OURS: "#c44e34"}
AXES = {"batch": "batch size", "dimension": "features", "depth": "layers"}
BAR = 0.27
TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw(path: pathlib.Path, facts: dict[str, str], results: Sequence[Result]) -> None:
    """Write the figure of `results` in the format that the name of `path` ends with."""
    from matplotlib.figure import Figure

    timed = [r for r in results if r.rows[OURS].seconds]
    bars = [r for r in timed if r.workload.axis is None and r.mode in (FORWARD, TRAIN)]
    curves = {
        op: [r for r in timed if r.workload.op == op and r.workload.axis] for op in {r.workload.op for r in timed}
    }
    curves = {op: points for op, points in sorted(curves.items()) if points}
    names = list(dict.fromkeys(r.workload.name for r in bars))
    height, below_height = 1.4 + 0.36 * len(names), 3.6 * len(curves)
    figure = Figure(figsize=(13, height + below_height + 0.4), dpi=130, layout="constrained")
    above, below = figure.subfigures(  # type: ignore[misc]
        2, 1, height_ratios=(height, max(below_height, 0.1)), hspace=0.03
    )
    for axes, mode in zip(above.subplots(1, 2, sharey=True), (FORWARD, TRAIN)):
        _bars(axes, mode, names, [r for r in bars if r.mode == mode])
    _legend(above, bars)
    for row, (op, points) in zip(below.subfigures(max(1, len(curves)), 1, squeeze=False)[:, 0], curves.items()):
        found = [axis for axis in AXES if any(r.workload.axis == axis for r in points)]
        for axes, axis in zip(row.subplots(1, len(found), squeeze=False)[0], found):
            _curves(axes, op, axis, [r for r in points if r.workload.axis == axis])
    figure.suptitle(_title(facts), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _title(facts: dict[str, str]) -> str:
    machine = facts.get("accelerator") or f"{facts['model']}, {facts['torch threads']} threads"
    noisy = "; other programs were running" if "note" in facts else ""
    return f"flowkernels {facts['flowkernels']}, {facts['backend']} backend: {machine}, torch {facts['torch']}{noisy}"


def _speed_ups(result: Result) -> dict[str, float]:
    """By what ours is compared with."""
    peer = result.peer
    over = {EAGER: EAGER, COMPILE: COMPILE, LIBRARY: peer.name if peer else ""}
    found = {label: result.speed_up(name) for label, name in over.items()}
    return {label: s.median for label, s in found.items() if s is not None}


def _bars(axes, mode: str, names: list[str], results: Sequence[Result]) -> None:
    everything = [1.0]
    for result in results:
        found = _speed_ups(result)
        everything += found.values()
        middle = names.index(result.workload.name) - (len(found) - 1) / 2 * BAR
        for i, (label, value) in enumerate(found.items()):
            drawn = axes.barh(middle + i * BAR, value - 1, 0.92 * BAR, left=1, color=COLOURS[label])
            axes.bar_label(drawn, [f"{value:.2g}x" if value < 10 else f"{value:.0f}x"], padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{t:g}x" for t in TICKS])
    axes.minorticks_off()
    axes.set_xlim(min(0.8, 0.7 * min(everything)), 1.4 * max(2, *everything))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(f"{mode}: how many times faster", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _legend(figure, results: Sequence[Result]) -> None:
    from matplotlib.patches import Patch

    labels = dict.fromkeys(label for result in results for label in _speed_ups(result))
    handles = [Patch(color=COLOURS[label]) for label in labels]
    figure.legend(handles, [f"than {label}" for label in labels], ncols=3, fontsize=9, loc="outside lower center")


def _curves(axes, op: str, axis: str, results: Sequence[Result]) -> None:
    for mode, style in ((FORWARD, "-"), (TRAIN, "--")):
        points = sorted((r for r in results if r.mode == mode), key=lambda r: r.workload.size)
        for name in (EAGER, COMPILE, OURS):
            rows = {r.workload.size: r.rows[name].time for r in points if name in r.rows and r.rows[name].seconds}
            if rows:
                look = {"color": COLOURS[name], "marker": "o", "markersize": 3, "label": f"{name}, {mode}"}
                axes.plot(rows.keys(), [t.median for t in rows.values()], style, **look)
                low, high = [t.low for t in rows.values()], [t.high for t in rows.values()]
                axes.fill_between(rows.keys(), low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(AXES[axis])
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(f"{op}: time of a call along the {axis}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
