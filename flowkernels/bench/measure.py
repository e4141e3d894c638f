"""One workload in one mode: every implementation checked against float64, then timed in turn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..tolerances import error, tolerance
from . import contestants as sides
from .contestants import Contestant
from .memory import peak_memory
from .timing import Summary, interleave, ratio, summary, synchronizer
from .workloads import COMPILE, EAGER, OURS, STEPS, Problem, Workload

OK, WRONG, ABSENT = "ok", "WRONG", "absent"


@dataclasses.dataclass
class Row:
    """What is known about one implementation.

    `error` is the largest of its outputs' as `flowkernels.tolerances` defines it, and `excess` the largest as a
    multiple of what is tolerated: above 1 the implementation is wrong.
    """

    name: str
    status: str
    reason: str | None = None
    error: float | None = None
    excess: float | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    launches: int | None = None
    bytes: int | None = None
    peak_memory: int | None = None

    @property
    def time(self) -> Summary:
        return summary(self.seconds)


@dataclasses.dataclass
class Result:
    """A workload in one mode; `floor` is the number of bytes that any implementation has to move."""

    workload: Workload
    mode: str
    rows: dict[str, Row]
    floor: int

    @property
    def status(self) -> str:
        return WRONG if any(row.status == WRONG for row in self.rows.values()) else OK

    @property
    def peer(self) -> Row | None:
        """The row of another library."""
        return next((row for name, row in self.rows.items() if name not in (EAGER, COMPILE, OURS)), None)

    def speed_up(self, over: str) -> Summary | None:
        """How many times faster ours is, None where one of the two was not timed."""
        other, ours = self.rows.get(over), self.rows[OURS]
        if other is None or not other.seconds or not ours.seconds:
            return None
        return ratio(other.seconds, ours.seconds)


def measure(
    workload: Workload, mode: str, problem: Problem, compiling: bool, seconds: float, report: Callable[[str], None]
) -> Result:
    """Check and time a built workload. `report` is told what is going on."""
    truth = sides.truth(problem, mode)
    rows: dict[str, Row] = {}
    ready: list[Contestant] = []
    for name, make in _makers(problem, mode, compiling).items():
        report("compiling" if name == COMPILE else f"checking {name}")
        rows[name], contestant = _examine(name, make, problem, truth)
        if contestant is not None:
            ready.append(contestant)
    del truth
    result = Result(workload, mode, rows, problem.cost(mode).floor)
    if result.status == OK:
        report("timing")
        device = problem.inputs[0].device
        runs = {contestant.name: contestant.run for contestant in ready}
        for name, times in interleave(runs, seconds, synchronizer(device)).items():
            rows[name].seconds = times
        for contestant in ready:
            if contestant.on_torch:
                rows[contestant.name].peak_memory = peak_memory(contestant.run, device)
    return result


def _makers(problem: Problem, mode: str, compiling: bool) -> dict[str, Callable[[], Contestant]]:
    """What makes each contestant, in the order of the columns."""
    if mode in STEPS:
        steps = {name: make for name, make in problem.steps.items() if compiling or name != COMPILE}
        return {name: functools.partial(sides.of_step, name, make, mode) for name, make in steps.items()}
    natural, ours = problem.natural.of(mode), problem.ours.of(mode)
    makers: dict[str, Callable[[], Contestant]] = {
        EAGER: lambda: sides.of_torch(EAGER, natural, problem, mode, counted=True)
    }
    if compiling:
        makers[COMPILE] = lambda: sides.compiled(problem, mode)
    for name, load in problem.peers.items():
        makers[name] = functools.partial(_peer, name, load, problem, mode)
    cost = problem.cost(mode)
    makers[OURS] = lambda: dataclasses.replace(
        sides.of_torch(OURS, ours, problem, mode, counted=False), count=lambda: cost
    )
    return makers


def _peer(name: str, load: Callable[[], Any], problem: Problem, mode: str) -> Contestant:
    made = load()
    if isinstance(made, sides.Jitted):
        return sides.of_jax(name, made, problem, mode)
    return sides.of_torch(name, made.of(mode), problem, mode, counted=True)


def _examine(
    name: str, make: Callable[[], Contestant], problem: Problem, truth: Sequence[Tensor]
) -> tuple[Row, Contestant | None]:
    """Run an implementation once and compare it with the truth. None in the place of one that is not to be timed."""
    try:
        contestant = make()
    except (ImportError, NotImplementedError) as missing:
        return Row(name, ABSENT, _first_line(missing)), None
    try:
        values = contestant.values(contestant.run())
        found, excess = (None, None) if values is None else _compare(values, truth, problem.terms)
    except Exception as failure:  # whatever it is, the other rows are still wanted
        if name == COMPILE:  # no compiler on this machine, a Python that dynamo does not support, ...
            return Row(name, ABSENT, _first_line(failure)), None
        return Row(name, WRONG, f"it failed: {_first_line(failure)}"), None
    if excess is not None and not excess <= 1:
        return Row(name, WRONG, f"its error is {excess:.3g} times what is tolerated", found, excess), None
    count = contestant.count()
    launches, moved = (None, None) if count is None else (count.launches, count.bytes)
    return Row(name, OK, None, found, excess, launches=launches, bytes=moved), contestant


def _first_line(failure: BaseException) -> str:
    return (str(failure).splitlines() or [""])[0] or type(failure).__name__


def _compare(values: Sequence[Tensor], truth: Sequence[Tensor], terms: Sequence[int]) -> tuple[float, float]:
    """The largest error, and the largest as a multiple of its tolerance."""
    if len(values) != len(truth):
        raise ValueError(f"it returned {len(values)} tensors, where there are {len(truth)}")
    errors = [error(value, true) for value, true in zip(values, truth)]
    allowed = [tolerance(value.dtype, n) for value, n in zip(values, terms)]
    return max(errors), max(e / a for e, a in zip(errors, allowed))
