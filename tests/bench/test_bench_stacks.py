"""The workloads of planar and radial flows: that every implementation is the same map, and every step a step."""

from __future__ import annotations

import pytest
import torch

from flowkernels.bench import contestants, measure, peers, report, stacks, steps
from flowkernels.bench.workloads import (
    COMPILE,
    EAGER,
    FORWARD,
    FUSED_STEP,
    INVERSE,
    OURS,
    STEP,
    TRAIN,
    Promise,
    Workload,
)

CPU = torch.device("cpu")
SMALL = (16, 3, 4)


def workload(op: str, modes: tuple[str, ...], library: str | None = None, promises=()) -> Workload:
    return Workload(
        op, f"{op} small", lambda device: stacks._problem(device, op, SMALL, library), modes=modes, promises=promises
    )


def result(op: str, mode: str, library: str | None = None, promises=()) -> measure.Result:
    made = workload(op, (mode,), library, promises)
    with torch.no_grad():
        return measure.measure(made, mode, made.build(CPU), False, 0.0, lambda _: None)


@pytest.mark.parametrize("mode", [FORWARD, TRAIN, STEP, FUSED_STEP])
@pytest.mark.parametrize("op", ["planar", "radial"])
def test_everybody_computes_the_same(op, mode):
    pytest.importorskip("normflows")
    found = result(op, mode, "normflows")
    assert found.status == measure.OK, {row.name: row.reason for row in found.rows.values()}
    assert set(found.rows) == {EAGER, OURS, "normflows"}
    assert all(row.seconds for row in found.rows.values())


def test_the_inverse_of_radial_flows_is_measured_and_normflows_has_none():
    pytest.importorskip("normflows")
    rows = result("radial", INVERSE, "normflows").rows
    assert rows[EAGER].status == rows[OURS].status == measure.OK
    assert (rows["normflows"].status, rows["normflows"].reason) == (measure.ABSENT, "it has no inverse")


def test_flowjax_steps_are_timed_and_not_compared():
    pytest.importorskip("flowjax")
    row = result("planar", STEP, "flowjax").rows["flowjax"]
    assert row.status == measure.OK
    assert row.seconds
    assert row.error is None


@pytest.mark.parametrize("mode", [STEP, FUSED_STEP])
def test_a_step_changes_the_parameters_and_returns_the_loss_before(mode):
    problem = stacks._problem(CPU, "planar", SMALL)
    inputs = problem.inputs
    step = problem.steps[OURS](mode)
    (exact,) = contestants.truth(problem, mode)
    first, second = step(), step()
    assert torch.allclose(first.double(), exact[0])
    assert second < first
    assert all(torch.equal(a, b) for a, b in zip(inputs, problem.inputs))


def test_a_wrong_step_is_not_timed(monkeypatch):
    monkeypatch.setattr(stacks.functional, "planar", lambda x, u, w, b, **_: (x + u.sum() + w.sum() + b.sum(), x[:, 0]))
    found = result("planar", STEP)
    assert found.rows[OURS].status == found.status == measure.WRONG
    assert not found.rows[EAGER].seconds


def test_promises_are_printed_beside_what_was_measured():
    found = result("planar", FORWARD, promises=(Promise(FORWARD, EAGER, 1.5, 4), Promise(STEP, EAGER, 2, 3)))
    ((measured, promise, speed_up),) = report.promises([found])
    assert (measured, promise.must) == (found, 1.5)
    assert f"planar small, forward: {speed_up.median:.2f}x eager (must 1.5x, out for 4x)" in report.text({}, [found])


def test_compiled_steps_are_made_where_they_are_wanted():
    assert COMPILE in stacks._problem(CPU, "planar", SMALL).steps
    names = measure._makers(stacks._problem(CPU, "planar", SMALL), STEP, True)
    assert list(names) == [EAGER, COMPILE, OURS]
    assert steps.LEARNING_RATE == peers.LEARNING_RATE


def test_every_registered_stack_can_be_built():
    for op in ("planar", "radial"):
        for made in stacks.workloads(op):
            if made.size <= 1024:
                problem = made.build(CPU)
                assert all(problem.cost(mode).launches >= 1 for mode in made.modes)
