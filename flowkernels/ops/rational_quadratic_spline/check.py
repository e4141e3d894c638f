"""The argument checks of rational-quadratic splines, one for eager calls, fakes and every backend."""

from __future__ import annotations

from torch import Tensor

from ..arguments import check_coupling_dtypes, check_mask, check_passive, check_same_device
from .form import SplineForm


def check(x: Tensor, raw: Tensor, mask: Tensor | None, form: SplineForm, passive: int, inverse: bool) -> None:
    """Raise TypeError or ValueError for arguments that no backend takes."""
    check_coupling_dtypes(x, raw)
    check_same_device(x, (("raw", raw), ("mask", mask)))
    check_passive(x, passive)
    if mask is not None:
        check_mask(x, mask, passive)
    batch, channels, *rest = x.shape[0], x.shape[1] - abs(passive), *x.shape[2:]
    expected = (batch, channels * form.parameters, *rest)
    if form.layout.startswith("trailing"):
        expected = (batch, channels, *rest, form.parameters)
    if tuple(raw.shape) != tuple(expected):
        raise ValueError(
            f"raw must have shape {tuple(expected)} for x of shape {tuple(x.shape)}, {form.parameters} parameters of"
            f" each transformed element and layout {form.layout!r}; got {tuple(raw.shape)}"
        )
