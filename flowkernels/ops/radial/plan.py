"""Radial flows by a backend."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import stack
from ..native import Launch
from .check import check


def forward(
    module: ModuleType, launch: Launch, x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a backend."""
    return stack.forward("Radial", module, launch, check, x, (center, alpha, beta), {"inverse": inverse})


def backward(
    module: ModuleType,
    launch: Launch,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    center: Tensor,
    alpha: Tensor,
    beta: Tensor,
    inverse: bool,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """`reference.backward` by a backend; None for what `wanted` leaves out."""
    parameters = (center, alpha, beta)
    return stack.backward(
        "Radial", module, launch, grad_y, grad_log_det, saved, parameters, {"inverse": inverse}, wanted
    )
