"""The specification of dequantization with a logit, in plain PyTorch.

``q = (x + u) (1 - alpha) / levels + alpha / 2``, ``z = logit(q)``, for whole numbers x = 0, ..., levels - 1 and noise u
in (0, 1): Theis, van den Oord and Bethge, "A note on the evaluation of generative models" (2016), and Dinh,
Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 4.1.

q and 1 - q are each a sum of positive terms: from a rounded q, 1 - q would be off by up to half a percent. Everything
is computed in float32, or float64 where the noise is float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..layout import accumulation_dtype, sum_rows


def _log_share(part: Tensor, levels: int, alpha: float) -> Tensor:
    return torch.log(part * ((1 - alpha) / levels) + alpha / 2)


def forward(noise: Tensor, x: Tensor, levels: int, alpha: float) -> tuple[Tensor, Tensor]:
    """z and log_det: log |dz / du| summed over each row."""
    u = noise.to(accumulation_dtype(noise.dtype))
    x = x.to(u.dtype)
    log_q = _log_share(x + u, levels, alpha)
    log_rest = _log_share((levels - 1 - x) + (1 - u), levels, alpha)
    constant = (math.log1p(-alpha) - math.log(levels)) * math.prod(x.shape[1:])
    return (log_q - log_rest).to(noise.dtype), constant - sum_rows(log_q + log_rest)


def saved(tensors: tuple, outputs: tuple, options: tuple) -> tuple[Tensor | None, ...]:
    """What backward reads: z, which tells all that x and the noise would."""
    return outputs[0], None


def backward(
    grad_z: Tensor | None, grad_log_det: Tensor | None, z: Tensor, x: None, levels: int, alpha: float
) -> tuple[Tensor, None]:
    """The gradient of the noise: with dz/du = (1 - alpha) / (levels q (1 - q)), 1 / (q (1 - q)) = 2 + 2 cosh z and
    d log(dz/du) / dz = -(1 - 2 q) = tanh(z / 2)."""
    value = z.to(accumulation_dtype(z.dtype))
    total = torch.zeros_like(value) if grad_z is None else grad_z.to(value.dtype)
    if grad_log_det is not None:
        total = total + grad_log_det.reshape(-1, *(1,) * (z.dim() - 1)) * torch.tanh(value / 2)
    slope = (2 + torch.exp(value) + torch.exp(-value)) * ((1 - alpha) / levels)
    return (total * slope).to(z.dtype), None


def quantize(z: Tensor, levels: int, alpha: float) -> Tensor:
    """The whole numbers whose dequantization gave z, 0 for NaN."""
    q = torch.sigmoid(z.to(accumulation_dtype(z.dtype)))
    x = ((q - alpha / 2) * (levels / (1 - alpha))).floor().clamp(0, levels - 1)
    return torch.nan_to_num(x, nan=0.0).to(quantized_dtype(levels))


def quantized_dtype(levels: int) -> torch.dtype:
    """The dtype of whole numbers below `levels`."""
    return torch.uint8 if levels <= 256 else torch.int32
