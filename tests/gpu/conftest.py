"""Fixtures for what only a GPU shows. Without one every test here is skipped, and says why."""

from __future__ import annotations

import pytest
import torch

from flowkernels import backends

from .run import why_no_gpu


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """The first CUDA device."""
    if (reason := why_no_gpu()) is not None:
        pytest.skip(reason)
    return torch.device("cuda", 0)


@pytest.fixture(params=["cuda", "triton"])
def backend(request, device) -> str:
    """The name of a kernel backend that runs on `device`."""
    require(request.param, device)
    return request.param


def require(name: str, device: torch.device) -> None:
    """Skip the test, with the backend's own reason, if a backend cannot run on a device."""
    if (reason := backends.problem(backends.NAMES.index(name), device.type, device.index)) is not None:
        pytest.skip(f"{name} on {device}: {reason}")
