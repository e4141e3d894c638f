"""The log-density of split in Triton: its formulas, which are those of csrc/flow/split.h, for triton_elementwise."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from .. import triton_math as tm
from ..triton_elementwise import Plan


@triton.jit
def _standardised(inputs):
    """(value - mean) / std, and 1 / std or None."""
    v, mean, log_std = inputs
    if mean is not None:
        v -= mean
    if log_std is None:
        return v, None
    else:
        inverse_std = tm.exp(-log_std)
        return v * inverse_std, inverse_std


@triton.jit
def split_forward(inputs, per_row, NUMBERS: tl.constexpr):
    """The log-density."""
    v, _ = _standardised(inputs)
    log_prob = -0.5 * (v * v) - 0.91893853320467274178  # log sqrt(2 pi)
    if inputs[2] is not None:
        log_prob -= inputs[2]
    return (None, None, None), log_prob


@triton.jit
def split_backward(inputs, per_row, NUMBERS: tl.constexpr):
    """The gradients of the value, the mean and log_std."""
    v, inverse_std = _standardised(inputs)
    of_mean = per_row * (v if inverse_std is None else v * inverse_std)
    return (-of_mean, of_mean, per_row * (v * v - 1.0)), None


SplitForward = functools.partial(Plan, split_forward, True)
SplitBackward = functools.partial(Plan, split_backward, False)
