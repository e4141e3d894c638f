"""The argument checks of dequantization, one for eager calls, fakes and every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import accumulation_dtype
from ..native import DTYPES

MOST_LEVELS = 65536  # float32 has 24 bits: more levels would leave less than 8 of them for the noise


def check_numbers(levels: int, alpha: float) -> None:
    """Raise ValueError for plain numbers out of range."""
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels must be an integer from 2 to {MOST_LEVELS}; got {levels!r}")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1); got {alpha!r}")


def check_latent(name: str, z: Tensor) -> None:
    """Raise TypeError or ValueError for a tensor that is no batch of real numbers."""
    if z.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {z.dtype}; supported are {', '.join(map(str, DTYPES))}")
    if z.dim() == 0:
        raise ValueError(f"{name} must have shape (B, ...); got a scalar")


def check(noise: Tensor, x: Tensor, levels: int, alpha: float) -> None:
    """Raise TypeError or ValueError for arguments that no backend takes."""
    check_numbers(levels, alpha)
    check_latent("noise", noise)
    if x.dtype not in (torch.uint8, accumulation_dtype(noise.dtype)):
        raise TypeError(f"beside noise in {noise.dtype} the operator takes x in uint8 or float; got {x.dtype}")
    if x.shape != noise.shape:
        raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}; got {tuple(noise.shape)}")
    if x.device != noise.device:
        raise TypeError(f"noise is on {noise.device} and x on {x.device}; they must be on one device")
