"""Affine coupling by the compiled modules: one runner for the CPU module and the CUDA one, which take the same plan."""

from __future__ import annotations

from torch import Tensor

from ..native import launcher
from . import plan as plans


def forward(number: int, *arguments) -> tuple[Tensor, Tensor]:
    """`reference.forward` by backend `number`, in one launch, or two where a row is split."""
    return plans.forward(*launcher(number), *arguments)


def backward(number: int, *arguments) -> tuple[Tensor | None, ...]:
    """`reference.backward` by backend `number`, in one launch, or two where something is reduced over the batch.

    The last argument says which of (x, raw, shift, mask, bound) need a gradient; raw and shift have theirs together.
    """
    return plans.backward(*launcher(number), *arguments)
