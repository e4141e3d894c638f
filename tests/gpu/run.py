"""What only a GPU shows, in one command: `make gpu`, or `python tests/gpu/run.py` from any directory.

It runs the tests of this directory, the four tools of compute-sanitizer on a few small calls, `flowkernels check`, the
bandwidth table and `flowkernels bench`, each in a process of its own, and writes all of it to gpu-report.json in the
current directory: please paste that into an issue. The exit status is 0 only if every step succeeded.

CUDA reports a failure of a kernel at some later call. CUDA_LAUNCH_BLOCKING=1 makes every launch wait, so that the
traceback names the right one; times are worthless then.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
REPORT = "gpu-report.json"
SCHEMA = 1
KEPT_LINES = 120  # of the output of a step that failed
OK, FAILED, SKIPPED = "ok", "failed", "skipped"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND_SOMETHING = 86  # the exit status of compute-sanitizer where a tool found an error
DEBUG = "run it again with CUDA_LAUNCH_BLOCKING=1 and the traceback names the call that failed"


@dataclasses.dataclass(frozen=True)
class Step:
    """A command, and how its result is read.

    Args:
        command: run in the root of the repository; None where it cannot be, for the reason `skip`.
        seconds: after which it is killed.
        read: from what the command printed to what goes into the report; ValueError or OSError where it is incomplete.
        environment: in addition to ours.
    """

    name: str
    command: tuple[str, ...] | None
    seconds: float = 3600
    read: Callable[[Sequence[str]], object] = lambda lines: None
    environment: tuple[tuple[str, str], ...] = ()
    skip: str = ""


def why_no_gpu() -> str | None:
    """Why there is no CUDA device, None if there is one. No context is made: some machines allow only one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is returned here
        if torch.cuda.is_available():
            return None
        try:
            torch.empty(0, device="cuda")
            reason = "torch.cuda.is_available() is False"
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
    return f"no CUDA device for torch {torch.__version__}: {reason}"


def steps(folder: Path) -> list[Step]:
    """Everything that is run; what the commands write lies in `folder`."""
    python = sys.executable
    flowkernels = (python, "-m", "flowkernels")
    tests, check, bandwidth, bench = (folder / name for name in ("tests.xml", "check", "bandwidth", "bench"))
    return [
        Step("tests", (python, "-m", "pytest", "tests/gpu", f"--junitxml={tests}"), 7200, lambda _: read_tests(tests)),
        *sanitizer_steps(find_sanitizer()),
        Step("check", (*flowkernels, "check", "--device", "cuda", "--json", str(check)), 1800, _json_of(check)),
        Step("bandwidth", (python, "-m", "tests.gpu.bandwidth", "--json", str(bandwidth)), 1800, _json_of(bandwidth)),
        Step(
            "bench", (*flowkernels, "bench", "--device", "cuda", "--quick", "--json", str(bench)), 1800, _json_of(bench)
        ),
    ]


def find_sanitizer() -> str | None:
    """compute-sanitizer, on PATH or where the toolkit has it."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.path.join(home, part) for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def sanitizer_steps(sanitizer: str | None) -> list[Step]:
    """One step for each tool."""
    if sanitizer is None:
        reason = "compute-sanitizer is neither on PATH nor under CUDA_HOME or /usr/local/cuda"
        return [Step(tool, None, skip=reason) for tool in TOOLS]
    options = (
        *("--error-exitcode", str(FOUND_SOMETHING)),
        *("--report-api-errors", "no"),  # torch asks the driver for functions that it may lack
        *("--target-processes", "application-only"),  # not the assembler that Triton starts
    )
    command = (sys.executable, "-m", "tests.gpu.sanitized")
    # Without torch's cache every tensor has an allocation of its own, whose end the tools know.
    environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    return [Step(t, (sanitizer, "--tool", t, *options, *command), 1800, read_summary, environment) for t in TOOLS]


def read_tests(report: Path) -> dict[str, object]:
    """Counts, failures and the reasons of what was skipped, from pytest's report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures, skipped = [], collections.Counter[str]()
    for case in cases:
        wrong = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if wrong is not None:
            name = f"{case.get('classname')}::{case.get('name')}"
            failures.append({"test": name, "message": wrong.get("message"), "text": (wrong.text or "")[-4000:]})
        elif (skip := case.find("skipped")) is not None:
            skipped[skip.get("message", "")] += 1
    passed = len(cases) - len(failures) - skipped.total()
    if not passed and not failures:
        raise ValueError("no test ran")
    return {"passed": passed, "failed": len(failures), "skipped": dict(skipped), "failures": failures}


def read_summary(lines: Sequence[str]) -> dict[str, str]:
    """The last line of a sanitizer: how many errors it found. Without it the tool was not attached."""
    for line in reversed(lines):
        if "SUMMARY" in line:
            return {"summary": line.strip("= \n")}
    raise ValueError("the tool printed no summary")


def _json_of(path: Path) -> Callable[[Sequence[str]], object]:
    return lambda lines: json.loads(path.read_text())


def perform(step: Step) -> dict[str, object]:
    """Run a step; what becomes of it as plain data."""
    if step.command is None:
        print(f"skipped: {step.skip}", flush=True)
        return {"name": step.name, "status": SKIPPED, "reason": step.skip}
    start = time.monotonic()
    code, lines = execute(step.command, step.seconds, {**os.environ, **dict(step.environment)})
    return assemble(step, code, lines, time.monotonic() - start)


def assemble(step: Step, code: int | None, lines: Sequence[str], elapsed: float) -> dict[str, object]:
    """A step's entry in the report, from its exit status (None: killed for time) and the end of its output."""
    reason, result = None, None
    if code is None:
        reason = f"killed after {step.seconds:.0f} s"
    elif code:
        reason = f"exit status {code}"
    try:
        result = step.read(lines)
    except (ValueError, OSError, ElementTree.ParseError) as error:
        reason = reason or f"its result cannot be read: {error}"
    entry = {"name": step.name, "command": " ".join(step.command or ()), "seconds": round(elapsed, 1), "result": result}
    if reason is None:
        return {**entry, "status": OK}
    return {**entry, "status": FAILED, "reason": reason, "output": "".join(lines)}


def execute(command: Sequence[str], seconds: float, environment: dict[str, str]) -> tuple[int | None, list[str]]:
    """Run a command, showing its output; its exit status, None if it had to be killed, and the output's end."""
    kept: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it started can be killed with it
    )
    # In a thread: a grandchild that lives on may hold the pipe open.
    reader = threading.Thread(target=_show, args=(process.stdout, kept), daemon=True)
    reader.start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    reader.join(5)
    return code, list(kept)


def _show(stream, kept: collections.deque[str]) -> None:
    for line in stream:
        kept.append(line)
        print(line, end="", flush=True)


def _output_of(*command: str) -> str | None:
    """What a command prints, None if there is no such command or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# In a process of its own, which makes a context and ends.
DEVICE = """
import json, torch
from flowkernels import backends, machine
p = torch.cuda.get_device_properties(0)
print(json.dumps({
    "device": p.name, "capability": f"{p.major}.{p.minor}", "memory_bytes": p.total_memory,
    "l2_bytes": p.L2_cache_size, "multiprocessors": p.multi_processor_count, "devices": torch.cuda.device_count(),
    "versions": machine.versions(), "backends": backends.problems(torch.device("cuda", 0)),
    "built for": getattr(backends.native_module(backends.CUDA), "architectures", None),
    "compiled by": getattr(backends.native_module(backends.CUDA), "compiler", None),
}))
"""


def facts() -> dict[str, object]:
    """What every figure depends on."""
    about = _output_of(sys.executable, "-c", DEVICE)
    driver = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    changes = _output_of("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **(json.loads(about.splitlines()[-1]) if about else {"device": None}),
        "driver": driver,
        "commit": _output_of("git", "rev-parse", "HEAD"),
        "changed_files": changes.splitlines() if changes else [],
        "system": platform.platform(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("CUDA_", "FLOWKERNELS_", "TRITON_", "PYTORCH_", "TORCH"))
        },
    }


def report(about: dict[str, object], done: Sequence[dict[str, object]], complete: bool) -> dict[str, object]:
    """Everything as plain data."""
    failed = [entry["name"] for entry in done if entry["status"] == FAILED]
    return {"schema": SCHEMA, "complete": complete, "failed": failed, **about, "steps": list(done)}


def main() -> int:
    if (reason := why_no_gpu()) is not None:
        print(f"make gpu: {reason}", file=sys.stderr)
        return 1
    path = Path.cwd() / REPORT
    about, done = facts(), []
    print(json.dumps(about, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        planned = steps(Path(folder))
        for number, step in enumerate(planned, 1):
            print(f"\n--- {step.name} ({number} of {len(planned)})", flush=True)
            done.append(perform(step))
            # After each step: a GPU that falls off the bus may take the machine with it.
            path.write_text(json.dumps(report(about, done, number == len(planned)), indent=1) + "\n")
    print()
    for entry in done:
        print(f"{entry['name']:12}{entry['status']}{': ' + str(entry['reason']) if 'reason' in entry else ''}")
    failed = any(entry["status"] == FAILED for entry in done)
    if failed:
        print(f"Something failed: {DEBUG}.")
    print(f"Everything is in {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
