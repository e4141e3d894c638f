"""Runs every stage of the test suite, each in processes of its own, and holds each to its counts.

A stage that guards something is worth nothing if it is skipped silently: every stage has a least number of passed
tests, and every skip must match a reason that is allowed on a machine like this one.

    python tests/stages.py            all stages
    python tests/stages.py suite      the stages named
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of pytest: what it runs, and what must come of it."""

    name: str
    arguments: tuple[str, ...]
    least: int
    environment: tuple[tuple[str, str], ...] = ()
    skips: tuple[str, ...] = ()
    share: str = "worksteal"  # how processes share the tests, as pytest-xdist's --dist


INTERPRETED = "needs TRITON_INTERPRET=1 or a GPU"

STAGES = (
    Stage(
        "suite",
        ("tests", "--ignore=tests/gpu"),
        least=8600,
        share="loadfile",  # what the tests of a file build and train, they share
        skips=(
            "this processor has no",
            INTERPRETED,
            "of machine code is of another Triton",
            "No module named 'flowjax'",
            "not in FrEIA's release on PyPI",
        ),
    ),
    Stage("doctests", ("--doctest-modules", "flowkernels"), least=46),
    Stage("interpreter", ("tests/ops", "-k", "triton"), least=1815, environment=(("TRITON_INTERPRET", "1"),)),
    Stage(
        "avx2", ("tests/ops", "-k", "cpu"), least=1900, environment=(("FLOWKERNELS_ISA", "avx2"),), skips=(INTERPRETED,)
    ),
    Stage(
        "baseline",
        ("tests/ops", "-k", "cpu"),
        least=1900,
        environment=(("FLOWKERNELS_ISA", "baseline"),),
        skips=(INTERPRETED,),
    ),
)


@dataclasses.dataclass
class Outcome:
    """What one stage came to."""

    passed: int
    failed: int
    skipped: list[str]


def run(stage: Stage) -> Outcome:
    """Run pytest for a stage and read its report."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        processes = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", stage.share)
        command = [sys.executable, "-m", "pytest", *processes, f"--junitxml={report.name}", *stage.arguments]
        # Tests build with cmake and ninja, which are this environment's.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path, **dict(stage.environment)}
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        cases = list(ElementTree.parse(report.name).iter("testcase")) if os.path.getsize(report.name) else []
    failed = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    # A module that skips itself has its reason in the text.
    skips = [case.find("skipped") for case in cases if case.find("skipped") is not None]
    skipped = [f"{skip.get('message')} {skip.text or ''}" for skip in skips]
    return Outcome(len(cases) - failed - len(skipped), failed or int(code != 0), skipped)


def complaints(stage: Stage, outcome: Outcome) -> list[str]:
    """Why a stage does not count as passed."""
    found = [f"{outcome.failed} failed"] if outcome.failed else []
    if outcome.passed < stage.least:
        found.append(f"{outcome.passed} passed, fewer than the {stage.least} there must be")
    unexpected = {reason for reason in outcome.skipped if not any(re.search(s, reason) for s in stage.skips)}
    found += [f"skipped for no reason that is allowed here: {reason}" for reason in sorted(unexpected)]
    return found


def main(names: list[str]) -> int:
    known = [stage.name for stage in STAGES]
    for name in names:
        if name not in known:
            raise SystemExit(f"stages are {', '.join(known)}; got {name!r}")
    passed = failed = 0
    for stage in STAGES:
        if names and stage.name not in names:
            continue
        print(f"\n--- stage {stage.name}", flush=True)
        start = time.monotonic()
        outcome = run(stage)
        wrong = complaints(stage, outcome)
        took = time.monotonic() - start
        print(f"--- stage {stage.name}: {outcome.passed} passed, {len(outcome.skipped)} skipped in {took:.0f} s")
        for complaint in wrong:
            print(f"--- stage {stage.name} FAILED: {complaint}")
        passed += outcome.passed
        failed += len(wrong)
    print(f"\n{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
