"""Bandwidth of large calls beside a copy of as many bytes, and times of calls that only launch:

    python -m tests.gpu.bandwidth [--json FILE]

Large calls are timed by events, one at a time, with the L2 cache full of something else. Small ones are timed as
`flowkernels bench` does, eager code, torch.compile and ours in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import flowkernels as fk
from flowkernels import backends
from flowkernels.bench import report, timing, workloads
from flowkernels.bench.measure import WRONG, measure
from flowkernels.ops.affine_coupling import cost, reference
from flowkernels.tolerances import error, tolerance

ROUNDS = 30
PAUSE = 3_000_000  # cycles, a millisecond or two: the host launches everything that is timed in the meantime
CHECKED = 64  # rows, first and last, that are compared with float64
TARGET = 0.85  # of the bandwidth of a copy
LAUNCH_BOUND = ("64x2 exp", "512x32 tanh")
SECONDS = 2.0

EXP = fk.AffineForm()
TANH = fk.AffineForm("tanh", bound=2.0)
SIGMOID = fk.AffineForm("sigmoid", order="shift_first", layout="interleaved_shift_scale")


@dataclasses.dataclass(frozen=True)
class Large:
    """A call whose x has 64 MB or more."""

    shape: tuple[int, ...]
    form: fk.AffineForm
    passive: int = 0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{'x'.join(map(str, self.shape))} {self.form.scale} {dtype}" + (" half" if self.passive else "")


LARGE = (
    Large((65536, 256), EXP),
    Large((65536, 256), TANH, 128),
    Large((65536, 256), SIGMOID, 128),
    Large((65536, 512), TANH, 0, torch.bfloat16),
    Large((8388608, 2), TANH, 1),
    Large((262144, 64), TANH, 32),
    Large((64, 262144), EXP),
    Large((1024, 64, 16, 16), TANH, 32),
    Large((262144, 256), EXP),
)


def tensors(call: Large, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, raw, and the gradients of y and log_det."""
    batch, channels, *rest = call.shape
    x = torch.randn(call.shape, device=device, dtype=call.dtype)
    raw = torch.randn((batch, 2 * (channels - call.passive), *rest), device=device, dtype=call.dtype)
    return x, raw, torch.randn_like(x), torch.randn(batch, device=device)


def worst(call: Large, values: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> float:
    """The largest error of the first and the last rows, as a multiple of what is tolerated."""
    largest = 0.0
    for rows in (slice(None, CHECKED), slice(-CHECKED, None)):
        x, raw, grad_y, grad_log_det = (t.detach()[rows].double() for t in given)
        exact = reference.forward(x, raw, None, None, None, call.form, call.passive, False)
        saved = exact[0] if reference.saves_output(call.form, False) else x
        exact += reference.backward(grad_y, grad_log_det, saved, raw, None, None, None, call.form, call.passive, False)[
            :2
        ]
        terms = (1, math.prod(call.shape[1:]), 1, 1)
        for value, truth, n in zip(values, exact, terms):
            largest = max(largest, error(value.detach()[rows], truth) / tolerance(value.dtype, n))
    return largest


class Clock:
    """Times what is launched on the current stream, with a cold L2."""

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self.other = torch.empty(max(4 * properties.L2_cache_size, 2**28), dtype=torch.uint8, device=device)
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, run: Callable[[], object]) -> float:
        self.other.zero_()
        torch.cuda._sleep(PAUSE)
        self.begin.record()
        run()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) / 1e3


def copier(moved: int, device: torch.device) -> Callable[[], object]:
    """A copy on the device that reads and writes as many bytes together."""
    source, target = (torch.zeros(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def compare(clock: Clock, run: Callable[[], object], moved: int, device: torch.device) -> dict[str, object]:
    """A run beside the copy of its bytes, in turn."""
    copy = copier(moved, device)
    for _ in range(3):
        run()
        copy()
    pairs = [(clock.seconds(copy), clock.seconds(run)) for _ in range(ROUNDS)]
    copies, ours = zip(*pairs)
    fraction, time = timing.ratio(copies, ours), timing.summary(ours)
    return {
        "bytes": moved,
        "median_s": time.median,
        "spread": time.spread,
        "copy_s": timing.summary(copies).median,
        "gb_per_s": moved / time.median / 1e9,
        "of_copy": fraction.median,
        "of_copy_low": fraction.low,
        "of_copy_high": fraction.high,
        "target": TARGET,
        "target_met": fraction.median >= TARGET,
    }


def measure_large(call: Large, clock: Clock, device: torch.device) -> list[dict[str, object]]:
    """Forward and backward of a call, by the backend in force; nothing that is wrong is timed."""
    given = tensors(call, device)
    x, raw, grad_y, grad_log_det = given
    leaves = x.requires_grad_(), raw.requires_grad_()
    options = {"form": call.form, "passive": call.passive or None}
    outputs = fk.affine_coupling(*leaves, **options)

    def forward() -> object:
        with torch.no_grad():
            return fk.affine_coupling(x, raw, **options)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, leaves, (grad_y, grad_log_det), retain_graph=True)

    if not (excess := worst(call, (*outputs, *backward()), given)) <= 1:
        return [{"status": WRONG, "reason": f"its error is {excess:.3g} times what is tolerated"}]
    rest = (None, None, call.form, call.passive, False)
    of_forward = cost.forward(x, raw, None, *rest).bytes
    of_backward = cost.backward(grad_y, grad_log_det, x, raw, None, *rest).bytes
    return [
        {"mode": mode, "status": "ok", **compare(clock, run, moved, device)}
        for mode, run, moved in (("forward", forward, of_forward), ("backward", backward, of_backward))
    ]


def all_large(device: torch.device) -> list[dict[str, object]]:
    """Every large call on every backend; one that fails, for want of memory perhaps, does not hide the others."""
    clock = Clock(device)
    rows = []
    for name in _backends(device):
        for call in LARGE:
            try:
                with fk.backend(name):
                    found = measure_large(call, clock, device)
            except RuntimeError as failure:
                found = [{"status": "failed", "reason": str(failure).splitlines()[0]}]
            torch.cuda.empty_cache()
            for row in found:
                rows.append({"backend": name, "call": str(call), **row})
                print(text(rows[-1]), flush=True)
    return rows


def _backends(device: torch.device) -> list[str]:
    problems = backends.problems(device)
    return [name for name in ("cuda", "triton") if problems[name] is None]


def text(row: dict[str, object]) -> str:
    """A row of the table of large calls."""
    first = f"{row['backend']:7} {row['call']:38} {row.get('mode', ''):9}"
    if row["status"] != "ok":
        return f"{first} {row['status']}: {row['reason']}"
    return (
        f"{first}{row['bytes'] / 1e6:8.0f} MB{row['median_s'] * 1e6:9.1f} us{row['gb_per_s']:8.0f} GB/s"
        f"{row['of_copy']:7.1%} of a copy's" + ("" if row["target_met"] else f", below {TARGET:.0%}")
    )


def launch_bound(device: torch.device) -> list[dict[str, object]]:
    """Small workloads of the registry beside eager code and torch.compile, on every backend."""
    rows = []
    for name in _backends(device):
        with fk.backend(name), torch.no_grad():
            chosen = [w for w in workloads.registry() if w.name in LAUNCH_BOUND]
            results = [
                measure(workload, mode, workload.build(device), True, SECONDS, lambda _: None)
                for workload in chosen
                for mode in (workloads.FORWARD, workloads.TRAIN)
            ]
        print(report.text({"backend": name, "device": str(device)}, results), flush=True)
        rows += [{"backend": name, **row} for row in report.as_json({}, results, 0.0)["results"]]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bandwidth")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    found: dict[str, list[dict[str, object]]] = {}
    for name, measured in (("large", all_large), ("launch_bound", launch_bound)):
        found[name] = measured(device)
        if args.json is not None:  # also when the second part fails
            args.json.write_text(json.dumps(found))
    rows = [row for part in found.values() for row in part]
    return 0 if rows and all(row["status"] == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
