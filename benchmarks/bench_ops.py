"""Our operations over time: ``pytest benchmarks --benchmark-autosave``, then ``--benchmark-compare``.

Ratios to other implementations come from ``flowkernels bench`` alone, which measures both sides in turn.
"""

from __future__ import annotations

import torch

from flowkernels.bench import contestants
from flowkernels.bench.timing import synchronizer
from flowkernels.bench.workloads import OURS


def test_ours(benchmark, workload, mode, device) -> None:
    problem = workload.build(device)
    ours = contestants.of_torch(OURS, problem.ours.of(mode), problem, mode, counted=False)
    synchronize = synchronizer(device)

    def call():
        ours.run()
        synchronize()

    with torch.no_grad():
        benchmark(call)
