"""Launches and bytes of split's log-density on a GPU, by formula: each tensor is read once, and backward writes its
gradients once.

The arguments are those of the functions in reference.py; of tensors only shapes, strides and dtypes matter.
"""

from __future__ import annotations

from torch import Tensor

from ..cost import Cost
from ..elementwise_cost import dense_bytes, mapped, summed


def forward(out: Tensor, mean: Tensor | None, log_std: Tensor | None) -> Cost:
    """Of one forward pass."""
    return summed((out, mean, log_std), out, 0)


def backward(
    grad_log_prob: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    log_std: Tensor | None,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> Cost:
    """Of the gradients that `wanted` names."""
    tensors = (out, mean, log_std)
    written = sum(dense_bytes(t) for t, w in zip(tensors, wanted) if w and t is not None)
    return mapped((*tensors, grad_log_prob), written)
