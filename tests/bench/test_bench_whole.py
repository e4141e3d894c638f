"""The workloads of whole flows."""

import pytest
import torch

from flowkernels.bench import command, contestants, measure, whole
from flowkernels.bench.workloads import DEFAULT, EAGER, GRADIENTS, OURS, STEP, Workload

CPU = torch.device("cpu")


@pytest.mark.parametrize("name, make, shape, promises", whole.MODELS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_model_has_one_loss_before_and_after(name, make, shape, promises):
    pytest.importorskip(name.split()[0])
    problem = whole._accelerated(CPU, make, (4, *shape[1:]))
    exact = contestants.truth(problem, GRADIENTS)[0]
    for side in (EAGER, OURS):
        step = problem.steps[side](GRADIENTS)
        loss = step()
        torch.testing.assert_close(loss.double().reshape(1), exact, rtol=1e-4, atol=1e-4)
        assert torch.equal(step(), loss)  # nothing has changed


def test_ours_beside_flowjax():
    workload = Workload("model", "nsf", lambda device: whole._nsf(device, 4, 4, 2, 8), modes=(STEP,))
    found = measure.measure(workload, STEP, workload.build(CPU), False, 0.0, lambda _: None)
    assert found.rows[EAGER].status == found.rows[OURS].status == measure.OK
    pytest.importorskip("flowjax")
    assert found.rows["flowjax"].status == measure.OK
    assert found.rows["flowjax"].error is None  # its splines are others


def test_a_library_that_is_missing_is_said(capsys):
    def build(device):
        raise ImportError("No module named 'somebodys'")

    workload = Workload("accelerate", "somebodys flow", build, modes=(STEP,))
    assert command._measure_all([workload], DEFAULT, CPU) == []
    assert "somebodys flow: not measured: No module named 'somebodys'" in capsys.readouterr().err
