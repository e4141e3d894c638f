"""The modules of backends and how they are called: compiled ones take addresses, Triton ones tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._compat import current_stream

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # as Dtype in csrc/flow/plan.h

# Runs a plan on a device with its tensors; None is a null pointer.
Launch = Callable[..., None]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _launch(plan: Any, device: torch.device, *tensors: Tensor | None) -> None:
    workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=device) if plan.workspace else None
    stream = current_stream(device) if device.type == "cuda" else 0
    plan(*map(_address, tensors), _address(workspace), device.index or 0, stream)


def _launch_on_cpu(plan: Any, device: torch.device, *tensors: Tensor | None) -> None:
    plan(*[0 if t is None else t.data_ptr() for t in tensors], 0, 0, 0)  # without a call for each


def cpu_module() -> ModuleType | None:
    """The compiled module of the CPU, where it is built and no other backend is asked for."""
    module = backends.native_module(backends.CPU)
    return None if isinstance(module, str) or backends.requested() not in (backends.AUTO, backends.CPU) else module


def launcher(number: int, package: str) -> tuple[ModuleType, Launch]:
    """The module of backend `number` for the op in a package, and how its plans are launched."""
    if number == backends.TRITON:
        triton = importlib.import_module(f"{package}.triton")
        return triton, importlib.import_module("flowkernels.ops.triton_launch").launch
    return backends.native_module(number), _launch_on_cpu if number == backends.CPU else _launch
