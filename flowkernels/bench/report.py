"""The results of a run as text and as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence

import torch

from .. import backends, machine
from .measure import ABSENT, OK, WRONG, Result, Row
from .timing import Summary
from .workloads import COMPILE, EAGER, MODES, OURS, Promise, targets

SCHEMA = 1
NAME_WIDTH = 36
TIME_WIDTH = 15
BUSY = 0.3
NOISY = 0.1


@dataclasses.dataclass(frozen=True)
class Mean:
    """A geometric mean of speed-ups: over the targets of an op if `target`, else over all its workloads.

    `count` of `total` workloads were measured on both sides; `must` and `out_for` are None where nothing is promised.
    """

    op: str
    mode: str
    over: str
    target: bool
    value: float
    count: int
    total: int
    must: float | None
    out_for: float | None


def header(device: torch.device, freed_memory_kept: bool) -> dict[str, str]:
    """What the figures depend on."""
    facts = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": str(device),
        "backend": backends.NAMES[backends.resolve(backends.requested(), device)],
        **machine.processor(),
        "compiler": machine.compiler() or "no CPU module",
        **machine.versions(),
        "freed memory": "kept" if freed_memory_kept else "as the C library does",
    }
    if (name := machine.accelerator(device)) is not None:
        facts["accelerator"] = name
    if (load := _load()) > BUSY:
        facts["note"] = f"other programs kept {load:.1f} cores busy before the start: expect noise"
    return facts


def _load() -> float:
    """How many threads wanted to run in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def means(results: Sequence[Result]) -> list[Mean]:
    """Geometric means per op, mode and what ours is compared with, scaling curves left out."""
    found = []
    points = [r for r in results if r.workload.axis is None]
    for op in sorted({r.workload.op for r in points}):
        for mode in MODES:
            for over in (EAGER, COMPILE):
                for target in (True, False):
                    chosen = [
                        r for r in points if r.workload.op == op and r.mode == mode and r.workload.target >= target
                    ]
                    found += _mean(op, mode, over, target, chosen)
    return found


def _mean(op: str, mode: str, over: str, target: bool, results: Sequence[Result]) -> list[Mean]:
    ratios = [s.median for r in results if (s := r.speed_up(over)) is not None]
    if not ratios:
        return []
    must, out_for = targets().get((op, mode, over), (None, None)) if target else (None, None)
    return [Mean(op, mode, over, target, statistics.geometric_mean(ratios), len(ratios), len(results), must, out_for)]


def text(facts: dict[str, str], results: Sequence[Result]) -> str:
    """Everything, for a terminal of 140 columns."""
    lines = [f"{name:17}{value}" for name, value in facts.items()]
    for mode in MODES:
        chosen = [r for r in results if r.mode == mode]
        if chosen:
            lines += ["", *_times(mode, chosen), "", *_costs(mode, chosen)]
    lines += [
        "",
        *_means(means(results)),
        *_promises(results),
        *_noise(results),
        *_losses(results),
        *_absences(results),
        *_wrongs(results),
    ]
    return "\n".join(lines)


def _times(mode: str, results: Iterable[Result]) -> Iterable[str]:
    titles = "".join(f"{title:>{TIME_WIDTH}}" for title in ("eager", "compile", "ours", "other library"))
    yield f"{mode + ', time of a call':{NAME_WIDTH}}{titles}{'ours faster than: eager compile library':>44}"
    for r in results:
        rows = (r.rows.get(EAGER), r.rows.get(COMPILE), r.rows[OURS], r.peer)
        cells = "".join(f"{_time(row):>{TIME_WIDTH}}" for row in rows)
        overs = (EAGER, COMPILE, r.peer.name if r.peer else "")
        ratios = "".join(f"{_ratio(r.speed_up(over)):>8}" for over in overs)
        yield f"{r.workload.name:{NAME_WIDTH}}{cells}{'':20}{ratios}"


def _time(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.seconds:
        return f"{seconds(row.time.median)} ±{min(row.time.spread / 2, 9.99):.0%}"
    return {WRONG: WRONG, ABSENT: ABSENT, OK: "not timed"}[row.status]


def seconds(value: float) -> str:
    """A time in a unit that suits it."""
    unit, size = next((u for u in (("s ", 1.0), ("ms", 1e-3)) if value >= u[1]), ("us", 1e-6))
    return f"{value / size:.3g} {unit}"


def _ratio(speed_up: Summary | None) -> str:
    return "-" if speed_up is None else f"{speed_up.median:.2f}x"


def _costs(mode: str, results: Iterable[Result]) -> Iterable[str]:
    titles = "".join(f"{title:>20}" for title in COST_COLUMNS)
    yield f"{mode + ', error and cost':{NAME_WIDTH}}{titles}"
    yield f"{'':{NAME_WIDTH}}" + f"{'eager':>11}{'ours':>9}" * len(COST_COLUMNS)
    for r in results:
        eager, ours = r.rows[EAGER], r.rows[OURS]
        pairs = [(cell(eager, r.floor), cell(ours, r.floor)) for cell in COST_COLUMNS.values()]
        yield f"{r.workload.name:{NAME_WIDTH}}" + "".join(f"{first:>11}{second:>9}" for first, second in pairs)


def _given(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.3g}"


# Of a row, and the number of bytes that have to be moved.
COST_COLUMNS: dict[str, Callable[[Row, int], str]] = {
    "max error": lambda row, floor: _given(row.error, ".1e"),
    "launches": lambda row, floor: _given(row.launches, "d"),
    "MB moved": lambda row, floor: _megabytes(row.bytes),
    "moved / floor": lambda row, floor: _given(None if row.bytes is None else row.bytes / max(1, floor), ".2f"),
    "peak MB": lambda row, floor: _megabytes(row.peak_memory),
}


def _means(found: Iterable[Mean]) -> Iterable[str]:
    for m in found:
        which = "target workloads" if m.target else "all workloads"
        line = f"geometric mean of {m.op} {m.mode}, {m.count} of {m.total} {which}: {m.value:.2f}x {m.over}"
        yield line + ("" if m.must is None else f" (must {m.must:g}x, out for {m.out_for:g}x)")


def promises(results: Iterable[Result]) -> Iterable[tuple[Result, Promise, Summary]]:
    """What is promised of single workloads, with what was measured."""
    for r in results:
        for promise in r.workload.promises:
            if promise.mode == r.mode and (found := r.speed_up(promise.over)) is not None:
                yield r, promise, found


def _promises(results: Iterable[Result]) -> Iterable[str]:
    for r, promise, found in promises(results):
        limits = f"(must {promise.must:g}x, out for {promise.out_for:g}x)"
        yield f"{r.workload.name}, {r.mode}: {found.median:.2f}x {promise.over} {limits}"


def _noise(results: Iterable[Result]) -> Iterable[str]:
    times = [row.time for r in results for row in r.rows.values() if row.seconds]
    noisy = sum(t.spread / 2 > NOISY for t in times)
    if noisy > len(times) / 10:
        yield f"NOISY: {noisy} of {len(times)} times vary by more than ±{NOISY:.0%}: measure again on an idle machine"


def _losses(results: Iterable[Result]) -> Iterable[str]:
    for r in results:
        for name in r.rows:
            if name != OURS and (s := r.speed_up(name)) is not None and s.median < 1:
                yield f"slower than {name}: {r.workload.name}, {r.mode}: {s.median:.2f}x ({s.low:.2f} to {s.high:.2f})"


def _absences(results: Iterable[Result]) -> Iterable[str]:
    reasons = {(n, row.reason) for r in results for n, row in r.rows.items() if row.status == ABSENT}
    return [f"absent: {name}: {reason}" for name, reason in sorted(reasons)]


def _wrongs(results: Iterable[Result]) -> Iterable[str]:
    for r in results:
        for name, row in r.rows.items():
            if row.status == WRONG:
                yield f"{WRONG}: {r.workload.name}, {r.mode}, {name}: {row.reason}"


def as_json(facts: dict[str, str], results: Sequence[Result], elapsed: float) -> dict[str, object]:
    """The same as plain data; `docs/benchmarks.md` describes it."""
    return {
        "schema": SCHEMA,
        "header": facts,
        "elapsed_s": round(elapsed, 1),
        "results": [_result(r) for r in results],
        "means": [dataclasses.asdict(m) for m in means(results)],
    }


def _result(r: Result) -> dict[str, object]:
    speed_ups = {name: s for name in r.rows if name != OURS and (s := r.speed_up(name)) is not None}
    return {
        "op": r.workload.op,
        "workload": r.workload.name,
        "mode": r.mode,
        "target": r.workload.target,
        "status": r.status,
        "floor_bytes": r.floor,
        "rows": [_row(row) for row in r.rows.values()],
        "speed_up": {name: dataclasses.asdict(s) for name, s in speed_ups.items()},
    }


def _row(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "status": row.status,
        "reason": row.reason,
        "error": _finite(row.error),
        "error_over_tolerance": _finite(row.excess),
        "median_s": row.time.median if row.seconds else None,
        "spread": row.time.spread if row.seconds else None,
        "round_s": row.seconds,
        "launches": row.launches,
        "bytes": row.bytes,
        "peak_memory_bytes": row.peak_memory,
    }


def _finite(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return value if value is None or math.isfinite(value) else str(value)
