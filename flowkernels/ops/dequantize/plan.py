"""Dequantization by a backend."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import elementwise
from ..layout import allocate_like, allocate_log_det, memory_format
from ..native import Launch
from .check import check, check_latent, check_numbers
from .reference import quantized_dtype


def _options(levels: int, alpha: float) -> tuple:
    return ("levels", levels), ("alpha", alpha)


def forward(
    module: ModuleType, launch: Launch, noise: Tensor, x: Tensor, levels: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a backend."""
    (z, _, _), log_det = elementwise.run(
        "DequantizeForward",
        module,
        launch,
        (noise, x, None),
        lambda: ((allocate_like(noise), None, None), allocate_log_det(noise)),
        options=_options(levels, alpha),
        check=lambda: check(noise, x, levels, alpha),
    )
    return z, log_det  # type: ignore[return-value]


def backward(
    module: ModuleType,
    launch: Launch,
    grad_z: Tensor | None,
    grad_log_det: Tensor | None,
    z: Tensor,
    x: None,
    levels: int,
    alpha: float,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, None]:
    """`reference.backward` by a backend; None for what `wanted` leaves out."""
    if not wanted[0]:
        return None, None
    (grad, _, _), _ = elementwise.run(
        "DequantizeBackward",
        module,
        launch,
        (z, grad_z, None),
        lambda: ((allocate_like(z), None, None), None),
        per_row=grad_log_det,
        options=_options(levels, alpha),
    )
    return grad, None


def quantize(module: ModuleType, launch: Launch, z: Tensor, levels: int, alpha: float) -> Tensor:
    """`reference.quantize` by a backend."""

    def check_all():
        check_numbers(levels, alpha)
        check_latent("z", z)

    def allocate():
        x = torch.empty_like(z, dtype=quantized_dtype(levels), memory_format=memory_format(z))
        return (x, None, None), None

    (x, _, _), _ = elementwise.run(
        "Quantize", module, launch, (z, None, None), allocate, options=_options(levels, alpha), check=check_all
    )
    return x  # type: ignore[return-value]
