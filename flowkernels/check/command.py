"""``flowkernels check``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from .. import backends, machine
from . import affine_coupling, elementwise, splines, stacks
from .case import Case, Comparison, compare

SCHEMA = 1
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
# Of x, and of what parametrises the map.
DTYPES = {
    "float32": (F32, F32),
    "float64": (F64, F64),
    "float16": (F16, F16),
    "bfloat16": (BF16, BF16),
    "f32, raw bf16": (F32, BF16),
    "bf16, raw f32": (BF16, F32),
}
NAME_WIDTH = 44
CELL_WIDTH = 15
MOST_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Check:
    """A case on one backend in one pair of dtypes: a comparison, or why there is none."""

    case: Case
    backend: str
    dtypes: str
    comparison: Comparison | None
    failure: str | None = None

    @property
    def right(self) -> bool:
        return self.comparison is not None and self.comparison.excess <= 1

    def __str__(self) -> str:
        if self.comparison is None:
            return "WRONG"
        return f"{self.comparison.worst:.1e}" if self.right else f"WRONG {self.comparison.worst:.1e}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``flowkernels check``."""
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--interpret", action="store_true", help="run Triton's kernels too, in its interpreter")
    parser.add_argument("--json", type=pathlib.Path, metavar="F", help="write every error to F")


def run(args: argparse.Namespace) -> int:
    """Check and print; returns the exit status: 0, 1 if anything is wrong, 2 for what cannot be done."""
    try:
        device = torch.empty(0, device=args.device).device
    except (RuntimeError, AssertionError) as error:
        return _refuse(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}")
    if args.interpret and not backends.interpreting():
        return _interpreted(args, device)
    start = time.monotonic()
    checks = []
    problems = backends.problems(device)
    for name, why in problems.items():
        if why is not None:
            print(f"{name}: cannot run on {device}: {why}\n")
            continue
        found = _check_backend(name, device)
        print(f"{_table(name, found)}\n")
        checks += found
    print(_summary(checks, time.monotonic() - start))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(_as_json(device, problems, checks), indent=1) + "\n")
    return 0 if all(check.right for check in checks) else 1


def _refuse(reason: str) -> int:
    print(f"flowkernels check: {reason}", file=sys.stderr)
    return 2


def _interpreted(args: argparse.Namespace, device: torch.device) -> int:
    """The same in a process of its own: Triton decides when it is imported whether it interprets."""
    if device.type != "cpu":
        return _refuse(f"--interpret runs on the CPU; got --device {args.device}")
    command = [sys.executable, "-m", "flowkernels", "check", "--interpret"]
    command += [] if args.json is None else ["--json", str(args.json)]
    return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}).returncode


def cases() -> list[Case]:
    """The cases of every op."""
    return [*affine_coupling.cases(), *stacks.cases(), *elementwise.cases(), *splines.cases()]


def _check_backend(name: str, device: torch.device) -> list[Check]:
    chosen = cases()
    checks = []
    for number, case in enumerate(chosen, 1):
        if sys.stderr.isatty():
            print(f"\r{name} {number}/{len(chosen)} {case.name}\x1b[K", end="", file=sys.stderr, flush=True)
        checks += [_check(case, name, dtypes, device) for dtypes in DTYPES]
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return checks


def _check(case: Case, backend: str, dtypes: str, device: torch.device) -> Check:
    try:
        with backends.backend(backend):
            return Check(case, backend, dtypes, compare(case.build(*DTYPES[dtypes], device)))
    except Exception as failure:  # whatever it is, the other checks are still wanted
        return Check(case, backend, dtypes, None, f"{type(failure).__name__}: {failure}")


def _table(name: str, checks: Sequence[Check]) -> str:
    title = f"{name} ({machine.isa()})" if name == "cpu" else name
    lines = [f"{title + ', largest error':{NAME_WIDTH}}" + "".join(f"{dtypes:>{CELL_WIDTH}}" for dtypes in DTYPES)]
    for i in range(0, len(checks), len(DTYPES)):
        row = checks[i : i + len(DTYPES)]
        lines.append(f"{row[0].case.name:{NAME_WIDTH}}" + "".join(f"{check!s:>{CELL_WIDTH}}" for check in row))
    return "\n".join(lines)


def _summary(checks: Sequence[Check], elapsed: float) -> str:
    """How many checks passed, the closest to failing, and what failed."""
    lines = []
    for name in dict.fromkeys(check.backend for check in checks):
        mine = [check for check in checks if check.backend == name]
        compared = [check for check in mine if check.comparison is not None]
        line = f"{name}: {sum(check.right for check in mine)} of {len(mine)} checks right"
        if compared:
            worst = max(compared, key=lambda check: check.comparison.excess)
            line += f"; at most {worst.comparison.excess:.2g} of what is tolerated ({worst.case.name}, {worst.dtypes})"
        lines.append(line)
    wrong = [f"WRONG: {c.backend}, {c.case.name}, {c.dtypes}: {_why(c)}" for c in checks if not c.right]
    lines += wrong[:MOST_LISTED]
    if len(wrong) > MOST_LISTED:
        lines.append(f"and {len(wrong) - MOST_LISTED} more")
    return "\n".join([*lines, f"took {elapsed:.0f} s"])


def _why(check: Check) -> str:
    if check.comparison is None:
        return check.failure.splitlines()[0]
    errors, allowed = check.comparison.errors, check.comparison.tolerances
    return "; ".join(f"{n} {errors[n]:.1e} > {allowed[n]:.1e}" for n in errors if not errors[n] <= allowed[n])


def _as_json(device: torch.device, problems: dict[str, str | None], checks: Sequence[Check]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "header": {"device": str(device), **machine.processor(), **machine.versions()},
        "cannot_run": {name: why for name, why in problems.items() if why is not None},
        "checks": [
            {
                "op": c.case.op,
                "case": c.case.name,
                "backend": c.backend,
                "dtypes": c.dtypes,
                "status": "ok" if c.right else "WRONG",
                "failure": c.failure,
                **_numbers(c.comparison),
            }
            for c in checks
        ],
    }


def _numbers(comparison: Comparison | None) -> dict[str, object]:
    if comparison is None:
        return {"errors": {}, "tolerances": {}}
    # JSON has no infinity.
    errors = {name: value if math.isfinite(value) else str(value) for name, value in comparison.errors.items()}
    return {"errors": errors, "tolerances": dict(comparison.tolerances)}
