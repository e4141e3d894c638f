"""Affine coupling by the compiled modules: one runner for the CPU module and the CUDA one, which take the same plan."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..._compat import current_stream
from . import plan as plans


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _launch(plan: Any, device: torch.device, *tensors: Tensor | None) -> None:
    workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=device) if plan.workspace else None
    stream = current_stream(device) if device.type == "cuda" else 0
    plan(*map(_address, tensors), _address(workspace), device.index or 0, stream)


def _launch_on_cpu(plan: Any, device: torch.device, *tensors: Tensor | None) -> None:
    plan(*map(_address, tensors), 0, 0, 0)


def _runner(number: int) -> tuple[ModuleType, plans.Launch]:
    return backends.native_module(number), _launch_on_cpu if number == backends.CPU else _launch


def forward(number: int, *arguments) -> tuple[Tensor, Tensor]:
    """`reference.forward` by backend `number`, in one launch, or two where a row is split."""
    return plans.forward(*_runner(number), *arguments)


def backward(number: int, *arguments) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`reference.backward` by backend `number`, in one launch, or two where something is reduced over the batch.

    The last argument says which of (x, raw and shift, bound) need a gradient; the others are None.
    """
    return plans.backward(*_runner(number), *arguments)
