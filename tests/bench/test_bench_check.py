"""`flowkernels check`, and the table of tolerances."""

from __future__ import annotations

import json
import math

import pytest
import torch

from flowkernels import backends
from flowkernels.check import case, command
from flowkernels.cli import main
from flowkernels.ops.affine_coupling import plan, reference
from flowkernels.tolerances import error, tolerance

FEW = ("exp", "additive", "tanh shift first, inverse", "learned bound, picture, half kept", "no rows")


@pytest.fixture
def few(monkeypatch):
    """A handful of cases."""
    chosen = [c for c in command.cases() if c.name in FEW]
    assert len(chosen) == len(FEW)
    monkeypatch.setattr(command, "cases", lambda: chosen)
    return chosen


def test_everything_is_right(few, tmp_path, capsys):
    path = tmp_path / "check.json"
    assert main(["check", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    can_run = [name for name, why in backends.problems(torch.device("cpu")).items() if why is None]
    assert [c["backend"] for c in written["checks"]] == [
        name for name in can_run for _ in range(len(FEW) * len(command.DTYPES))
    ]
    assert set(written["cannot_run"]) == set(backends.NAMES[1:]) - set(can_run)
    assert {c["status"] for c in written["checks"]} == {"ok"}
    learned = next(c for c in written["checks"] if c["case"].startswith("learned"))
    assert set(learned["errors"]) == {"y", "log_det", "gradient of x", "gradient of raw", "gradient of bound"}
    out = capsys.readouterr().out
    assert f"reference: {len(FEW) * 6} of {len(FEW) * 6} checks right" in out
    assert "cuda: cannot run on cpu" in out or "cuda" in can_run


def test_a_wrong_kernel_is_reported(few, monkeypatch, capsys):
    if backends.problem(backends.CPU, "cpu"):
        pytest.skip("the CPU module is not built")
    run = plan.backward

    def drops_log_det(module, launch, grad_y, grad_log_det, *rest):
        return run(module, launch, grad_y, None, *rest)

    monkeypatch.setattr(plan, "backward", drops_log_det)
    with monkeypatch.context() as patch:
        patch.setenv("FLOWKERNELS_BACKEND", "auto")
        assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "WRONG: cpu, exp, float32: gradient of raw" in out
    assert "WRONG: reference" not in out


def test_a_kernel_that_fails_is_wrong(few, monkeypatch, capsys):
    def fails(*arguments):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(reference, "_sum_event", fails)
    assert main(["check"]) == 1
    assert "WRONG: reference, exp, float32: RuntimeError: no such instruction" in capsys.readouterr().out


def test_every_map_order_layout_and_partition_is_there():
    names = [c.name for c in command.cases()]
    assert len(set(names)) == len(names)
    for scale in ("exp", "tanh", "atan_legacy", "sigmoid eps", "softplus eps maximum", "given, inverse"):
        assert scale in names
    assert "picture, checkerboard, inverse" in names
    assert "layout trailing_shift_scale" in names


def test_interpreted_on_a_gpu_is_refused(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["check", "--interpret", "--device", "meta"]) == 2
    assert "--interpret runs on the CPU" in capsys.readouterr().err


def test_interpreted_runs_again_with_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    seen = {}

    class Finished:
        returncode = 1

    def run(words, env):
        seen.update(command=words, variable=env["TRITON_INTERPRET"])
        return Finished

    monkeypatch.setattr(command.subprocess, "run", run)
    assert main(["check", "--interpret", "--json", "here.json"]) == 1
    assert seen["variable"] == "1"
    assert seen["command"][1:] == ["-m", "flowkernels", "check", "--interpret", "--json", "here.json"]


def test_tolerance_grows_with_the_root_of_the_terms():
    assert tolerance(torch.float32, 0) == tolerance(torch.float32) == 16 * 2**-23
    assert tolerance(torch.float64, 100) == pytest.approx(10 * tolerance(torch.float64))
    assert tolerance(torch.bfloat16) > tolerance(torch.float16) > tolerance(torch.float32)
    with pytest.raises(TypeError, match="int32"):
        tolerance(torch.int32)


def test_error_sees_what_is_not_finite():
    nan, infinity = float("nan"), float("inf")

    def of(value, truth):
        return error(torch.tensor([1.0, value]), torch.tensor([1.0, truth], dtype=torch.float64))

    assert of(nan, nan) == of(infinity, infinity) == of(3.0, 3.0) == 0
    assert of(nan, 1.0) == of(1.0, nan) == of(infinity, 1.0) == of(infinity, -infinity) == of(1.0, infinity) == math.inf
    assert of(4.0, 3.0) == 0.25
    assert error(torch.empty(0), torch.empty(0)) == 0
    with pytest.raises(ValueError, match="shape"):
        error(torch.zeros(2), torch.zeros(1))


def test_comparison_is_by_the_worst_result():
    comparison = case.Comparison({"y": 1e-7, "log_det": 1e-6}, {"y": 1e-6, "log_det": 5e-7})
    assert comparison.worst == 1e-6
    assert comparison.excess == pytest.approx(2)
