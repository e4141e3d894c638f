"""Radial flows by the compiled modules."""

from __future__ import annotations

from torch import Tensor

from .. import stack
from ..native import launcher
from .check import check


def forward(
    number: int, x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by backend `number`."""
    return stack.forward("Radial", *launcher(number), check, x, (center, alpha, beta), {"inverse": inverse})


def backward(
    number: int,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    center: Tensor,
    alpha: Tensor,
    beta: Tensor,
    inverse: bool,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """`reference.backward` by backend `number`; None for what `wanted` leaves out."""
    parameters = (center, alpha, beta)
    return stack.backward(
        "Radial", *launcher(number), grad_y, grad_log_det, saved, parameters, {"inverse": inverse}, wanted
    )
