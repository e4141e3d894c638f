"""Launches and bytes of planar flows on a GPU; the arguments are those of the functions in reference.py, of whose
tensors only shapes, strides and dtypes matter.
"""

from __future__ import annotations

from torch import Tensor

from .. import stack_cost
from ..cost import Cost

_KERNEL = stack_cost.Kernel(vectors=2, numbers=2, record=2, needs_input=False, table=3)


def forward(x: Tensor, u: Tensor, w: Tensor, b: Tensor, activation: str, negative_slope: float, inverse: bool) -> Cost:
    """Of one forward or inverse pass."""
    return stack_cost.forward(_KERNEL, x, (u, w, b))


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    u: Tensor,
    w: Tensor,
    b: Tensor,
    activation: str,
    negative_slope: float,
    inverse: bool,
    wanted: tuple[bool, ...] = (True, True, True, True),
) -> Cost:
    """Of the gradients that `wanted` names."""
    return stack_cost.backward(_KERNEL, grad_y, grad_log_det, saved, (u, w, b), inverse, wanted)
