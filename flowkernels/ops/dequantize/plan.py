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
    check(noise, x, levels, alpha)
    z, log_det = allocate_like(noise), allocate_log_det(noise)
    inputs, outputs = (noise, x, None), (z, None, None)
    elementwise.run("DequantizeForward", module, launch, inputs, outputs, sums=log_det, options=_options(levels, alpha))
    return z, log_det


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
    grad = allocate_like(z)
    inputs, outputs = (z, grad_z, None), (grad, None, None)
    elementwise.run(
        "DequantizeBackward", module, launch, inputs, outputs, per_row=grad_log_det, options=_options(levels, alpha)
    )
    return grad, None


def quantize(module: ModuleType, launch: Launch, z: Tensor, levels: int, alpha: float) -> Tensor:
    """`reference.quantize` by a backend."""
    check_numbers(levels, alpha)
    check_latent("z", z)
    x = torch.empty_like(z, dtype=quantized_dtype(levels), memory_format=memory_format(z))
    elementwise.run("Quantize", module, launch, (z, None, None), (x, None, None), options=_options(levels, alpha))
    return x
