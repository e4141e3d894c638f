"""Dequantization by a backend."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..elementwise import Elementwise, Operands, Outputs
from ..layout import allocate_like, allocate_log_det, memory_format
from ..native import Launch
from .check import check, check_latent, check_numbers
from .reference import quantized_dtype

_NUMBERS = ("levels", "alpha")


def _latent(inputs: Operands, wanted: None) -> Outputs:
    noise: Tensor = inputs[0]  # type: ignore[assignment]
    return allocate_like(noise), None, None, allocate_log_det(noise)


def _gradient(inputs: Operands, wanted: None) -> Outputs:
    return allocate_like(inputs[0]), None, None, None  # type: ignore[arg-type]


def _integers(inputs: Operands, levels: int) -> Outputs:
    z: Tensor = inputs[0]  # type: ignore[assignment]
    x = torch.empty_like(z, dtype=quantized_dtype(levels), memory_format=memory_format(z))
    return x, None, None, None


def _check(noise: Tensor, x: Tensor, _: None, levels: int, alpha: float) -> None:
    check(noise, x, levels, alpha)


def _check_latent(z: Tensor, _: None, __: None, levels: int, alpha: float) -> None:
    check_numbers(levels, alpha)
    check_latent("z", z)


_forward = Elementwise("DequantizeForward", _latent, _NUMBERS, _check)
_backward = Elementwise("DequantizeBackward", _gradient, _NUMBERS)
_quantize = Elementwise("Quantize", _integers, _NUMBERS, _check_latent)


def forward(
    module: ModuleType, launch: Launch, noise: Tensor, x: Tensor, levels: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a backend."""
    z, _, _, log_det = _forward(module, launch, (noise, x, None), (levels, alpha))
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
    return _backward(module, launch, (z, grad_z, None), (levels, alpha), per_row=grad_log_det)[0], None


def quantize(module: ModuleType, launch: Launch, z: Tensor, levels: int, alpha: float) -> Tensor:
    """`reference.quantize` by a backend."""
    return _quantize(module, launch, (z, None, None), (levels, alpha), levels)[0]  # type: ignore[return-value]
