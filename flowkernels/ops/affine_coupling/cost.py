"""Launches and bytes of affine coupling on a GPU, by formula. With D elements a row, A of them active, and one size of
element: forward moves 2D + 2A + 1 of them a row, backward 2D + 4A + 1.

The arguments are those of the functions in reference.py; of tensors only shapes, strides and dtypes matter.
"""

from __future__ import annotations

from torch import Tensor

from ..cost import Cost, coupling_chunks, distinct_bytes
from ..layout import split_passive
from . import reference
from .form import AffineForm

SECTOR = 32  # bytes that a GPU reads at the least


def forward(
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> Cost:
    """Of one forward or inverse pass."""
    event = x.numel() * x.element_size()
    read = event + distinct_bytes(raw) + distinct_bytes(shift) + distinct_bytes(mask) + distinct_bytes(bound)
    sum_size = reference.accumulation_dtype(x.dtype).itemsize
    written = event + x.shape[0] * sum_size
    chunks = coupling_chunks(x, passive)
    partial = x.shape[0] * chunks * sum_size if chunks > 1 else 0
    launches = 0 if x.shape[0] == 0 else 1 + (chunks > 1)
    return Cost(launches, read + partial, written + partial, read + written)


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
    wanted: tuple[bool, bool, bool] = (True, True, False),
) -> Cost:
    """Of the gradients that `wanted` names: of x, of raw and shift, of bound.

    The partial sums of a bound's gradient are not counted: less than 1% of the rest.
    """
    of_x, of_raw, of_bound = wanted
    active = split_passive(saved, passive)[1].numel() * saved.element_size()
    read = distinct_bytes(mask)
    if grad_y is not None:
        read += distinct_bytes(grad_y if of_x else split_passive(grad_y, passive)[1])
    if form.scale != "additive":
        read += _scale_bytes(raw, shift, form) + distinct_bytes(bound)
        if of_raw or of_bound:
            read += active + distinct_bytes(grad_log_det)
    written = saved.numel() * saved.element_size() if of_x else 0
    written += raw.numel() * raw.element_size() * (1 if shift is None else 2) if of_raw else 0
    written += distinct_bytes(bound) if of_bound else 0
    launches = 0 if saved.numel() == 0 else 1 + of_bound
    return Cost(launches, read, written, read + written)


def _scale_bytes(raw: Tensor, shift: Tensor | None, form: AffineForm) -> int:
    """What reading the scale moves: the shift as well, where both lie in the same sectors."""
    scale = reference.split_raw(raw, shift, form)[0]
    steps = [stride for size, stride in zip(scale.shape, scale.stride()) if size > 1 and stride > 0]
    apart = min(steps, default=1)
    shared = shift is None and apart > 1 and apart * raw.element_size() < SECTOR
    return distinct_bytes(raw if shared else scale)
