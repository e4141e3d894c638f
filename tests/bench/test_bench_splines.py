"""The workloads of splines: that every implementation is the same map."""

import functools

import pytest
import torch

from flowkernels.bench import measure, splines
from flowkernels.bench.workloads import EAGER, OURS, PASSES, Workload

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", PASSES)
def test_everybody_computes_the_same(mode):
    pytest.importorskip("nflows")
    workload = Workload(splines.SPLINE, "small", functools.partial(splines._problem, shape=(256, 8)))
    with torch.no_grad():
        found = measure.measure(workload, mode, workload.build(CPU), False, 0.0, lambda _: None)
    assert found.status == measure.OK, {row.name: row.reason for row in found.rows.values()}
    assert set(found.rows) == {EAGER, OURS, "nflows"}
