"""The calls by which rational-quadratic splines are checked: every form, partition and kind of memory.

The splines are nearly straight: what a rounding of x or of a knot does to the results of steep ones is no error of a
backend. In half precision they are straighter still, as the gradient of the inverse is that at a rounded y.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import functional
from ..nn.masks import channel_mask, checkerboard_mask
from ..ops.rational_quadratic_spline import SplineForm, reference
from ..ops.rational_quadratic_spline.form import shift_for
from .case import Call, Case

OP = "rational_quadratic_spline"
EIGHT = SplineForm(8, 3.0)
FORMS = {
    "eight bins": EIGHT,
    "circular": SplineForm(10, 3.0, tails="circular"),
    "no tails": SplineForm(5, 3.0, tails=None),
    "affine tails": SplineForm(5, box=(-3.0, 2.0, -1.0, 1.5), tails="affine"),
    "zuko": SplineForm.zuko(),
    "freia": SplineForm.freia(),
    "one bin": SplineForm(1, 3.0),
    "trailing": dataclasses.replace(EIGHT, bound=None, layout="trailing_widths_heights_derivatives"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A call of a spline but for its numbers."""

    form: SplineForm = EIGHT
    shape: tuple[int, ...] = (17, 12)
    mask: Tensor | None = None
    passive: int = 0
    inverse: bool = False
    channels_last: bool = False


def cases() -> Iterator[Case]:
    """Every case, in both directions, but for the long rows: among so many there are some at the very knots."""
    settings = {name: Setting(form) for name, form in FORMS.items()}
    settings |= {
        "the last three": Setting(passive=-9),
        "images, checkerboard": Setting(shape=(3, 2, 6, 8), mask=checkerboard_mask(6, 8)),
        "images, channels": Setting(shape=(3, 4, 5, 6), mask=channel_mask(4, spatial=True)),
        "images, channels_last": Setting(shape=(3, 4, 5, 6), passive=2, channels_last=True),
        "no rows": Setting(shape=(0, 4)),
    }
    yield Case(OP, "spline, long rows", functools.partial(_build, Setting(shape=(2, 20001), passive=3000)))
    for name, setting in settings.items():
        yield Case(OP, f"spline, {name}", functools.partial(_build, setting))
        inverse = dataclasses.replace(setting, inverse=True)
        yield Case(OP, f"spline, {name}, inverse", functools.partial(_build, inverse))


def _straight(form: SplineForm) -> float:
    """The raw derivative for the slope of the box's diagonal."""
    left, right, bottom, top = form.extent
    return shift_for((top - bottom) / (right - left) - form.min_derivative) if form.derivative == "softplus" else 0.0


def _build(setting: Setting, x_dtype: torch.dtype, raw_dtype: torch.dtype, device: torch.device) -> Call:
    random = torch.Generator().manual_seed(0)
    form, (batch, channels, *rest) = setting.form, setting.shape
    transformed = (channels - abs(setting.passive)) * form.parameters
    shape = (batch, transformed, *rest)
    if form.layout.startswith("trailing"):
        shape = (batch, channels, *rest, form.parameters)
    spread = 2.9 if form.tails is None else 4.0
    x = spread * (2 * torch.rand(setting.shape, generator=random) - 1)
    wiggle = 0.005 if min(torch.finfo(d).bits for d in (x_dtype, raw_dtype)) == 16 else 0.1
    raw = wiggle * torch.randn(shape, generator=random)
    reference.split_raw(raw, form)[..., -form.derivatives or form.parameters :] += _straight(form)
    if setting.channels_last:
        x, raw = (t.contiguous(memory_format=torch.channels_last) for t in (x, raw))
    mask = None if setting.mask is None else setting.mask.to(device)
    options = (form, setting.passive, setting.inverse)
    terms = math.prod(setting.shape[1:])
    return Call(
        {"x": x.to(device, x_dtype), "raw": raw.to(device, raw_dtype)},
        lambda x, raw: functional.rational_quadratic_spline(
            x, raw, form=form, mask=mask, passive=setting.passive, inverse=setting.inverse
        ),
        lambda x, raw: reference.forward(x, raw, mask, *options),
        {"y": 4, "log_det": 64 * terms, "gradient of x": 256, "gradient of raw": 256},
    )
