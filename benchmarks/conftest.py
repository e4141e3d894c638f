"""The device and the workloads of `pytest benchmarks`, from the registry of `flowkernels bench`."""

from __future__ import annotations

import pytest
import torch

from flowkernels.bench import workloads
from flowkernels.bench.memory import keep_freed


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the benchmarks (default cpu)")
    parser.addoption("--op", choices=workloads.ops(), help="benchmarks of this operation only")


def pytest_configure() -> None:
    keep_freed()


def pytest_generate_tests(metafunc) -> None:
    chosen = workloads.select(metafunc.config.getoption("--op"))
    pairs = [(workload, mode) for workload in chosen for mode in workload.modes if mode in workloads.PASSES]
    metafunc.parametrize(
        "workload, mode", pairs, ids=[f"{workload.op}: {workload.name}, {mode}" for workload, mode in pairs]
    )


@pytest.fixture
def device(request) -> torch.device:
    return torch.empty(0, device=request.config.getoption("--device")).device
