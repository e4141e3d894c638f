"""Planar flows by the compiled modules."""

from __future__ import annotations

from torch import Tensor

from .. import stack
from ..native import launcher
from .check import check


def _options(activation: str, negative_slope: float, inverse: bool) -> dict[str, object]:
    return {"activation": activation, "negative_slope": negative_slope, "inverse": inverse}


def forward(
    number: int, x: Tensor, u: Tensor, w: Tensor, b: Tensor, activation: str, negative_slope: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by backend `number`."""
    return stack.forward(
        "Planar", *launcher(number), check, x, (u, w, b), _options(activation, negative_slope, inverse)
    )


def backward(
    number: int,
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
    """`reference.backward` by backend `number`; None for what `wanted` leaves out."""
    options = _options(activation, negative_slope, inverse)
    return stack.backward("Planar", *launcher(number), grad_y, grad_log_det, saved, (u, w, b), options, wanted)
