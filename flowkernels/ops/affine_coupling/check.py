"""The argument checks of affine coupling, one for eager calls, fakes and every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import check_coupling_dtypes, check_mask, check_passive, check_same_device
from .form import AffineForm


def check(
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> None:
    """Raise TypeError or ValueError for arguments that no backend takes."""
    check_coupling_dtypes(x, raw)
    if shift is not None and shift.dtype != raw.dtype:
        raise TypeError(f"scale and shift must have one dtype; got {raw.dtype} and {shift.dtype}")
    check_same_device(x, (("raw", raw), ("shift", shift), ("mask", mask), ("bound", bound)))
    check_passive(x, passive)
    if mask is not None:
        check_mask(x, mask, passive)
    active = (x.shape[0], x.shape[1] - abs(passive), *x.shape[2:])
    _check_raw(x, active, raw, shift, form)
    _check_bound(x, active[1], bound, form)


def _check_raw(x: Tensor, active: tuple[int, ...], raw: Tensor, shift: Tensor | None, form: AffineForm) -> None:
    if form.scale == "additive":
        if shift is not None:
            raise ValueError("the additive form takes the shift alone as raw; got a pair")
        expected = active
    elif shift is not None:
        expected = active
        if tuple(shift.shape) != active:
            raise ValueError(f"shift must have shape {active}, that of the transformed part; got {tuple(shift.shape)}")
    elif form.layout.startswith("trailing"):
        expected = (*active, 2)
    else:
        expected = (active[0], 2 * active[1], *active[2:])
    if tuple(raw.shape) != tuple(expected):
        raise ValueError(
            f"raw must have shape {tuple(expected)} for x of shape {tuple(x.shape)}, scale {form.scale!r} and layout"
            f" {form.layout!r}; got {tuple(raw.shape)}"
        )


def _check_bound(x: Tensor, channels: int, bound: Tensor | None, form: AffineForm) -> None:
    if bound is None:
        if form.bounded and form.bound is None:
            raise ValueError(f"scale {form.scale!r} needs a bound, in the form or as the argument bound; got neither")
        return
    if not form.bounded:
        raise ValueError(f"bound means nothing for scale {form.scale!r}; got a tensor of shape {tuple(bound.shape)}")
    if form.bound is not None:
        raise ValueError(f"the form has bound={form.bound} already; got a bound tensor as well")
    if bound.dtype != (torch.float64 if x.dtype == torch.float64 else torch.float32):
        raise TypeError(f"the operator takes a bound in the dtype of log_det; got {bound.dtype}")
    if tuple(bound.shape) != (channels,):
        raise ValueError(f"bound must have shape ({channels},), one per transformed channel; got {tuple(bound.shape)}")
