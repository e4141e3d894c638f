"""Planar flows by a backend."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import stack
from ..native import Launch
from .check import check


def _options(activation: str, negative_slope: float, inverse: bool) -> dict[str, object]:
    return {"activation": activation, "negative_slope": negative_slope, "inverse": inverse}


def forward(
    module: ModuleType,
    launch: Launch,
    x: Tensor,
    u: Tensor,
    w: Tensor,
    b: Tensor,
    activation: str,
    negative_slope: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a backend."""
    return stack.forward("Planar", module, launch, check, x, (u, w, b), _options(activation, negative_slope, inverse))


def backward(
    module: ModuleType,
    launch: Launch,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    u: Tensor,
    w: Tensor,
    b: Tensor,
    activation: str,
    negative_slope: float,
    inverse: bool,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """`reference.backward` by a backend; None for what `wanted` leaves out."""
    options = _options(activation, negative_slope, inverse)
    return stack.backward("Planar", module, launch, grad_y, grad_log_det, saved, (u, w, b), options, wanted)
