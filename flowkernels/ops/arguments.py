"""Checks that ops of coupling layers share: those of x, raw conditioner output, a mask and a passive part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .native import DTYPES


def check_coupling_dtypes(x: Tensor, raw: Tensor) -> None:
    """x and raw are floating point, and raw is float64 or float32 where x is float64, and not float64 elsewhere."""
    for name, tensor in (("x", x), ("raw", raw)):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {tensor.dtype}; supported are {', '.join(map(str, DTYPES))}")
    if x.dtype == torch.float64 and raw.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"with x in float64, raw must be float64 or float32; got {raw.dtype}")
    if raw.dtype == torch.float64 and x.dtype != torch.float64:
        raise TypeError(f"raw has dtype float64 and x has {x.dtype}; cast raw down or x up")


def check_same_device(x: Tensor, others: Iterable[tuple[str, Tensor | None]]) -> None:
    """Every tensor is on x's device."""
    for name, tensor in others:
        if tensor is not None and tensor.device != x.device:
            raise TypeError(f"{name} is on {tensor.device} and x on {x.device}; they must be on one device")


def check_passive(x: Tensor, passive: int) -> None:
    """x has a channel dimension with at least that many channels."""
    if x.dim() < 2:
        raise ValueError(f"x must have a batch and a channel dimension; got shape {tuple(x.shape)}")
    if not -x.shape[1] <= passive <= x.shape[1]:
        raise ValueError(f"passive must be at most the {x.shape[1]} channels of x; got {passive}")


def check_mask(x: Tensor, mask: Tensor, passive: int) -> None:
    """A mask is boolean, broadcasts to the event, and stands alone."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True = passive (kept); got {mask.dtype}")
    if passive:
        raise ValueError(f"mask and passive exclude each other; got both, passive={passive}")
    event = x.shape[1:]
    fits = mask.dim() <= len(event) and all(m in (1, e) for m, e in zip(mask.shape[::-1], event[::-1]))
    if not fits:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not broadcast to the event shape {tuple(event)}")
