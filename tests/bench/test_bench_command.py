"""`flowkernels bench`: what it writes, and that nothing wrong is timed."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from flowkernels import functional
from flowkernels.bench import affine_coupling, command, measure, report, timing, workloads
from flowkernels.bench.workloads import COMPILE, EAGER, FORWARD, INVERSE, OURS, QUICK, TRAIN
from flowkernels.cli import main

CPU = torch.device("cpu")
HEADER = {"date", "device", "backend", "model", "torch threads", "flowkernels uses", "compiler", "torch", "flowkernels"}


@pytest.fixture(autouse=True)
def few_and_short(monkeypatch):
    """A registry of two small workloads, hardly timed."""
    chosen = [w for w in workloads.registry() if w.name in ("64x2 exp", "512x32 tanh")]
    monkeypatch.setattr(workloads, "registry", lambda: chosen)
    monkeypatch.setattr(command, "SECONDS", dict.fromkeys(command.SECONDS, 0.0))
    monkeypatch.setattr(timing, "TURN", 1e-4)


def measured(workload, mode=FORWARD, compiling=False):
    return measure.measure(workload, mode, workload.build(CPU), compiling, 0.0, lambda _: None)


def test_quick_run_writes_everything_it_measured(tmp_path, capsys):
    path = tmp_path / "new" / "bench.json"
    assert main(["bench", "--quick", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["schema"] == report.SCHEMA
    assert set(written["header"]) >= HEADER
    assert [(r["workload"], r["mode"]) for r in written["results"]] == [
        (name, mode) for name in ("64x2 exp", "512x32 tanh") for mode in (FORWARD, TRAIN)
    ]
    for result in written["results"]:
        assert result["status"] == "ok"
        rows = {row["name"]: row for row in result["rows"]}
        assert list(rows) == [EAGER, OURS]
        for row in rows.values():
            assert row["error_over_tolerance"] <= 1
            assert len(row["round_s"]) == timing.FEWEST_ROUNDS
            assert min(row["round_s"]) <= row["median_s"] <= max(row["round_s"])
            assert row["peak_memory_bytes"] > 0
        assert rows[OURS]["launches"] == (1 if result["mode"] == FORWARD else 2)
        assert rows[OURS]["bytes"] == result["floor_bytes"] < rows[EAGER]["bytes"]
        low, median, high = (result["speed_up"][EAGER][key] for key in ("low", "median", "high"))
        assert low <= median <= high
    targets = [m for m in written["means"] if m["target"]]
    assert [(m["mode"], m["over"], m["count"], m["total"]) for m in targets] == [
        (FORWARD, EAGER, 1, 1),
        (TRAIN, EAGER, 1, 1),
    ]
    assert targets[0]["must"] == 4.2
    out, progress = capsys.readouterr()
    assert "64x2 exp" in out
    assert "geometric mean" in out
    assert "[4/4] 512x32 tanh, forward+backward" in progress


def wrong_sign(x, raw, **options):
    y, log_det = right(x, raw, **options)
    return y, -log_det


def forgets_gradient_of_shift(x, raw, **options):
    s, t = raw.chunk(2, dim=1)
    return right(x, torch.cat((s, t.detach()), dim=1), **options)


def crashes(x, raw, **options):
    raise RuntimeError("illegal instruction")


right = functional.affine_coupling


@pytest.mark.parametrize(
    "fault, modes",
    [(wrong_sign, {FORWARD, TRAIN}), (forgets_gradient_of_shift, {TRAIN}), (crashes, {FORWARD, TRAIN})],
)
def test_a_wrong_operation_is_reported_and_not_timed(fault, modes, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(functional, "affine_coupling", fault)
    path = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--json", str(path)]) == 1
    for result in json.loads(path.read_text())["results"]:
        wrong = result["mode"] in modes
        assert result["status"] == ("WRONG" if wrong else "ok")
        assert all((row["median_s"] is None) == wrong for row in result["rows"])
        assert bool(result["speed_up"]) != wrong
    out = capsys.readouterr().out
    assert "WRONG: 64x2 exp, forward+backward, ours:" in out
    assert ("illegal instruction" in out) == (fault is crashes)


def test_a_wrong_backend_is_reported(monkeypatch, capsys):
    from flowkernels import backends
    from flowkernels.ops.affine_coupling import plan

    if backends.problem(backends.CPU, "cpu"):
        pytest.skip("the CPU module is not built")
    run = plan.forward

    def off_by_one(module, launch, x, *rest):
        y, log_det = run(module, launch, x, *rest)
        y[-1, -1] = x[-1, -1]
        return y, log_det

    monkeypatch.setattr(plan, "forward", off_by_one)
    assert main(["bench", "--quick"]) == 1
    assert "WRONG: 64x2 exp, forward, ours: its error is" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [FORWARD, INVERSE, TRAIN])
@pytest.mark.parametrize("library", affine_coupling.LIBRARIES)
def test_libraries_compute_the_same(library, mode):
    result = measured(affine_coupling._library(library, (16, 8), QUICK), mode)
    assert result.peer.name == library
    if result.peer.status == measure.ABSENT:
        pytest.skip(result.peer.reason)
    assert {name: row.reason for name, row in result.rows.items() if row.status != measure.OK} == {}
    assert result.speed_up(library).median > 0


def small_halves(device):
    return affine_coupling._problem(
        device, (4, 6, 4, 4), affine_coupling.TANH_FORM, affine_coupling.TANH_HALF, passive=3
    )


def small_checkerboard(device):
    return affine_coupling._checkerboard(device, (4, 3, 4, 4))


@pytest.mark.parametrize("mode", [FORWARD, INVERSE, TRAIN])
@pytest.mark.parametrize("build", [small_halves, small_checkerboard])
def test_pictures_are_right(build, mode):
    result = measured(workloads.Workload("affine_coupling", "pictures", build), mode)
    assert {name: row.reason for name, row in result.rows.items() if row.status != measure.OK} == {}


def test_a_library_that_is_missing_is_absent_and_the_rest_is_timed():
    workload = affine_coupling._library("normflows", (16, 8), QUICK)
    problem = workload.build(CPU)

    def missing():
        raise ImportError("No module named 'normflows'")

    problem.peers["normflows"] = missing
    result = measure.measure(workload, FORWARD, problem, False, 0.0, lambda _: None)
    assert result.status == measure.OK
    assert result.rows["normflows"].status == measure.ABSENT
    assert result.speed_up(EAGER) is not None
    assert "absent: normflows: No module named" in report.text(report.header(CPU, False), [result])


def test_compiled_code_is_a_row(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compile_(*a, **k, backend="eager"))
    result = measured(workloads.registry()[0], TRAIN, compiling=True)
    assert list(result.rows) == [EAGER, COMPILE, OURS]
    assert result.speed_up(COMPILE) is not None


def test_no_time_has_what_it_costs_to_come_after_another():
    last = ""

    def contestant(name):
        def run():
            nonlocal last
            time.sleep(0.005 if last == name else 0.05)  # both longer than a turn: one call is timed
            last = name

        return run

    times = timing.interleave({name: contestant(name) for name in ("a", "b")}, 0.0, lambda: None)
    assert all(max(found) < 0.025 for found in times.values())


def test_ratios_are_taken_within_rounds():
    slow_machine = [1.0, 1.0, 10.0, 10.0, 10.0]
    twice = timing.ratio([2 * t for t in slow_machine], slow_machine)
    assert (twice.low, twice.median, twice.high) == (2, 2, 2)
    assert math.isclose(timing.summary([1.0, 2.0, 3.0, 4.0, 5.0]).spread, 2 / 3)


def test_the_registry_is_what_the_targets_speak_of(monkeypatch):
    monkeypatch.undo()
    targets = [w.name for w in workloads.select("affine_coupling") if w.target]
    assert len(targets) == 11
    assert "64x2 exp" not in targets
    assert "64x12x16x16 half, tanh" in targets
    assert [w for w in workloads.select(level=QUICK) if w.axis] == []
    assert {w.axis for w in workloads.select(level=QUICK, scaling=True)} == {None, "batch", "dimension", "depth"}
    assert all(w.level <= workloads.FULL for w in workloads.registry())
    assert len({w.name for w in workloads.registry()}) == len(workloads.registry())


def test_figure(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    curve = [affine_coupling._point("batch", 64), affine_coupling._point("dimension", 8)]
    chosen = [*workloads.registry(), *curve]
    monkeypatch.setattr(workloads, "registry", lambda: chosen)
    path = tmp_path / "bench.png"
    assert main(["bench", "--quick", "--plot", str(path)]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there(device, capsys):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["bench", "--device", device]) == 2
    assert f"--device {device} cannot be used" in capsys.readouterr().err
