"""The specification of the log-density of the half that a split scores, in plain PyTorch.

Each row of `out` under independent normal distributions, standard ones or with given means and log-deviations: Dinh,
Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 3.6; Kingma and Dhariwal, "Glow" (2018).
Everything is computed in float32, or float64 where `out` is float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import accumulation_dtype, sum_rows

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _standardised(out: Tensor, mean: Tensor | None, log_std: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(out - mean) / std, and 1 / std."""
    dtype = accumulation_dtype(out.dtype)
    v = out.to(dtype)
    if mean is not None:
        v = v - mean.to(dtype)
    if log_std is None:
        return v, None
    inverse_std = torch.exp(-log_std.to(dtype))
    return v * inverse_std, inverse_std


def forward(out: Tensor, mean: Tensor | None, log_std: Tensor | None) -> Tensor:
    """The log-density of each row."""
    v, _ = _standardised(out, mean, log_std)
    total = v.square().mul(-0.5)
    if log_std is not None:
        total = total - log_std.to(v.dtype)
    return sum_rows(total) - HALF_LOG_TWO_PI * math.prod(out.shape[1:])


def saved(tensors: tuple, outputs: tuple, options: tuple) -> tuple[Tensor | None, ...]:
    """What backward reads."""
    return tensors


def backward(
    grad_log_prob: Tensor | None, out: Tensor, mean: Tensor | None, log_std: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of out, the mean and log_std."""
    v, inverse_std = _standardised(out, mean, log_std)
    if grad_log_prob is None:
        grad_log_prob = v.new_zeros(out.shape[0])
    g = grad_log_prob.reshape(-1, *(1,) * (out.dim() - 1))
    of_mean = g * v if inverse_std is None else g * v * inverse_std
    return (
        (-of_mean).to(out.dtype),
        None if mean is None else of_mean.to(mean.dtype),
        None if log_std is None else (g * (v * v - 1)).to(log_std.dtype),
    )
