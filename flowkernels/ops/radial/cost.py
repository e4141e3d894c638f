"""Launches and bytes of radial flows on a GPU; the arguments are those of the functions in reference.py, of whose
tensors only shapes, strides and dtypes matter.
"""

from __future__ import annotations

from torch import Tensor

from .. import stack_cost
from ..cost import Cost

_KERNEL = stack_cost.Kernel(vectors=1, numbers=2, record=1, needs_input=True, table=0)


def forward(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool) -> Cost:
    """Of one forward or inverse pass."""
    return stack_cost.forward(_KERNEL, x, (center, alpha, beta))


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    center: Tensor,
    alpha: Tensor,
    beta: Tensor,
    inverse: bool,
    wanted: tuple[bool, ...] = (True, True, True, True),
) -> Cost:
    """Of the gradients that `wanted` names."""
    return stack_cost.backward(_KERNEL, grad_y, grad_log_det, saved, (center, alpha, beta), inverse, wanted)
