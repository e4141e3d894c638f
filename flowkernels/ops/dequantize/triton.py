"""Dequantization in Triton: its formulas, which are those of csrc/flow/dequantize.h, for triton_elementwise."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import triton
import triton.language as tl

from .. import triton_math as tm
from ..triton_elementwise import Plan


class _Numbers(NamedTuple):
    last: float  # the largest whole number
    share: float  # (1 - alpha) / levels
    log_share: float
    margin: float  # alpha / 2
    steps: float  # levels / (1 - alpha)


def _numbers(levels: int, alpha: float) -> _Numbers:
    share = (1 - alpha) / levels
    return _Numbers(levels - 1.0, share, math.log1p(-alpha) - math.log(levels), alpha / 2, levels / (1 - alpha))


@triton.jit
def dequantize_forward(inputs, per_row, NUMBERS: tl.constexpr):
    """z and log dz/du. q and 1 - q are each a sum of positive terms: from a rounded q, 1 - q would be off by up to half
    a percent."""
    u, x, _ = inputs
    log_q = tm.log((x + u) * NUMBERS.share + NUMBERS.margin)
    log_rest = tm.log(((NUMBERS.last - x) + (1.0 - u)) * NUMBERS.share + NUMBERS.margin)
    return (log_q - log_rest, None, None), NUMBERS.log_share - (log_q + log_rest)


@triton.jit
def dequantize_backward(inputs, per_row, NUMBERS: tl.constexpr):
    """The gradient of u, from z alone: dz/du = share / (q (1 - q)) with 4 q (1 - q) = sech²(z / 2), and the derivative
    of log dz/du by z is 2 q - 1 = tanh(z / 2)."""
    z, grad_z, _ = inputs
    tanh, sech2 = tm.tanh_sech2(0.5 * z)
    total = per_row * tanh
    if grad_z is not None:
        total += grad_z
    slope = tm.divide(tl.full(z.shape, 4.0 * NUMBERS.share, z.dtype), sech2)
    return (total * slope, None, None), None


@triton.jit
def quantize(inputs, per_row, NUMBERS: tl.constexpr):
    """The whole number, 0 for NaN."""
    z, _, _ = inputs
    x = (tm.sigmoid(z) - NUMBERS.margin) * NUMBERS.steps
    x = tl.where(x > 0.0, x, 0.0)
    return (tl.where(x < NUMBERS.last, x, NUMBERS.last).to(tl.int32), None, None), None


DequantizeForward = functools.partial(Plan, dequantize_forward, True, _numbers)
DequantizeBackward = functools.partial(Plan, dequantize_backward, False, _numbers)
Quantize = functools.partial(Plan, quantize, False, _numbers)
