"""Activation normalisation by torch's batch normalisation with fixed statistics, which is the same map: one pass
forward, and one backward that also reduces the gradients of the parameters. It is one truth for all backends.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import accumulation_dtype


def actnorm(x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """y = exp(log_scale) x + shift, or its inverse, for each channel, and log_det."""
    dtype = accumulation_dtype(x.dtype)
    log_scale, shift = log_scale.to(dtype), shift.to(dtype)
    total = log_scale.sum() * math.prod(x.shape[2:])
    if inverse:
        scale = torch.exp(-log_scale)
        shift, total = -shift * scale, -total
    else:
        scale = torch.exp(log_scale)
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    y = F.batch_norm(x, mean, variance, scale, shift, training=False, eps=0.0)
    return y, total.expand(x.shape[0])
