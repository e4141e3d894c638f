"""Calls of affine coupling on a device, with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import flowkernels as fk

TANH = fk.AffineForm("tanh", bound=2.0)
LEARNED = fk.AffineForm("tanh")


def leaves(shape: tuple[int, ...], device: torch.device, learned: bool = False) -> list[Tensor]:
    """Random x and raw, and a bound for each channel if it is learned, all of which need a gradient."""
    raw_shape = (shape[0], 2 * shape[1], *shape[2:])
    tensors = [torch.randn(shape, device=device), torch.randn(raw_shape, device=device)]
    if learned:
        tensors.append(0.5 + torch.rand(shape[1], device=device))
    return [t.requires_grad_() for t in tensors]


def both_ways(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """y, log_det and the gradients of everything, by the backend in force."""
    x, raw, bound = (*tensors, None)[:3]
    y, log_det = fk.affine_coupling(x, raw, form=TANH if bound is None else LEARNED, bound=bound)
    return y, log_det, *torch.autograd.grad(y.square().sum() / 2 + log_det.sum(), tensors)


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two results are equal bit for bit (none of them holds a NaN)."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
