"""Launches and bytes of rational-quadratic splines on a GPU, by formula. With D elements a row, A of them active, P
parameters for each of those, and one size of element: forward moves 2D + P A + 1 of them a row, backward
2D + A + 2 P A + 1. With 8 bins in float32 that is 100 and 196 bytes per active element, and 4 per row.

The arguments are those of the functions in reference.py; of tensors only shapes, strides and dtypes matter.
"""

from __future__ import annotations

from torch import Tensor

from ..cost import Cost, coupling_chunks, distinct_bytes
from ..layout import accumulation_dtype, split_passive
from .form import SplineForm


def forward(x: Tensor, raw: Tensor, mask: Tensor | None, form: SplineForm, passive: int, inverse: bool) -> Cost:
    """Of one forward or inverse pass."""
    event = x.numel() * x.element_size()
    read = event + distinct_bytes(raw) + distinct_bytes(mask)
    sums = x.shape[0] * accumulation_dtype(x.dtype).itemsize
    written = event + sums
    chunks = coupling_chunks(x, passive)
    partial = chunks * sums if chunks > 1 else 0
    launches = 0 if x.shape[0] == 0 else 1 + (chunks > 1)
    return Cost(launches, read + partial, written + partial, read + written)


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    raw: Tensor,
    mask: Tensor | None,
    form: SplineForm,
    passive: int,
    inverse: bool,
    wanted: tuple[bool, bool, bool] = (True, True, False),
) -> Cost:
    """Of the gradients that `wanted` names: of x, of raw."""
    of_x, of_raw, _ = wanted
    active = split_passive(saved, passive)[1]
    read = active.numel() * saved.element_size() + distinct_bytes(raw) + distinct_bytes(mask)
    if active.numel() > 0:
        read += distinct_bytes(grad_log_det)
    if grad_y is not None:
        read += distinct_bytes(grad_y if of_x else split_passive(grad_y, passive)[1])
    written = saved.numel() * saved.element_size() if of_x else 0
    written += raw.numel() * raw.element_size() if of_raw else 0
    return Cost(0 if saved.numel() == 0 else 1, read, written, read + written)
