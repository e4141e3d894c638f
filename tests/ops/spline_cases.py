"""Calls of rational-quadratic splines that between them reach every branch of every backend, and how exact their
results must be.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

import flowkernels as fk
from flowkernels.ops.layout import split_passive
from flowkernels.ops.rational_quadratic_spline import reference
from flowkernels.tolerances import tolerance

from .affine_cases import strided

TRAILING = "trailing_widths_heights_derivatives"
FORMS = [
    fk.SplineForm(),
    fk.SplineForm(8, 3.0, tails="circular"),
    fk.SplineForm(4, box=(-1.0, 2.0, 0.0, 1.0), tails=None),
    fk.SplineForm(5, box=(-1.0, 2.0, 0.0, 1.0), tails="affine", layout=TRAILING),
    fk.SplineForm(10, 2.0, logit_scale=0.3, min_width=0.05, min_height=0.02, min_derivative=0.1),
    fk.SplineForm(3, 1.5, normalization="softclip", side="left", derivative="softplus_shifted", tails="circular"),
    fk.SplineForm(1, 2.0),
    fk.SplineForm(16, 4.0),
    fk.SplineForm(21, 4.0, layout=TRAILING),
    fk.SplineForm.nflows(10, 1.0),
    fk.SplineForm.zuko(),
    fk.SplineForm.zuko(5, 2.0, slope=1e-2),
    fk.SplineForm.freia(),
    fk.SplineForm.freia(4, default_domain=(-2.0, 1.0, -1.0, 3.0)),
]
EIGHT = FORMS[0]

DTYPES = [
    *((x, raw) for x in (torch.float32, torch.float16, torch.bfloat16) for raw in (torch.float32, torch.bfloat16)),
    (torch.float32, torch.float16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: the form, x's shape, and how its elements are divided."""

    form: fk.SplineForm = EIGHT
    shape: tuple[int, ...] = (5, 7)
    passive: int | None = None
    mask: str | None = None
    inverse: bool = False
    strides: str = "contiguous"

    def __str__(self) -> str:
        form = f"{self.form.bins}-{self.form.tails}-{self.form.normalization}-{self.form.layout[:5]}"
        parts = (form, self.shape, self.passive, self.mask, "inverse" if self.inverse else None, self.strides)
        return "-".join(str(part) for part in parts if part is not None).replace(" ", "")


def raw_shape(call: Call) -> tuple[int, ...]:
    """The shape of raw for a call."""
    batch, channels, *rest = call.shape
    channels -= abs(call.passive or 0)
    if call.form.layout == TRAILING:
        return (batch, channels, *rest, call.form.parameters)
    return (batch, channels * call.form.parameters, *rest)


def options(call: Call) -> dict[str, object]:
    """What `fk.rational_quadratic_spline` takes beside tensors."""
    mask = None
    if call.mask == "checkerboard":
        mask = fk.nn.checkerboard_mask(*call.shape[-2:])
    elif call.mask is not None:
        mask = torch.rand(call.shape[1:]) > 0.5
    return {"form": call.form, "passive": call.passive, "mask": mask, "inverse": call.inverse}


def inputs(call: Call) -> tuple[Tensor, Tensor]:
    """x, also outside of the box where there are tails, and raw, in float64."""
    low, high = call.form.extent[2:] if call.inverse else call.form.extent[:2]
    spread = 0.49 if call.form.tails is None else 0.7
    x = (low + high) / 2 + (high - low) * spread * (2 * torch.rand(call.shape, dtype=torch.float64) - 1)
    raw = torch.randn(raw_shape(call), dtype=torch.float64)
    if call.strides == "channels_last" and raw.dim() != 4:
        return strided(x, call.strides), raw
    return strided(x, call.strides), strided(raw, call.strides)


def run(x: Tensor, raw: Tensor, cotangents: tuple[Tensor, Tensor], given: dict) -> tuple[Tensor, ...]:
    """y, log_det and the gradients of x and raw."""
    x, raw = x.detach().requires_grad_(), raw.detach().requires_grad_()
    outputs = fk.rational_quadratic_spline(x, raw, **given)
    grads = torch.autograd.grad(outputs, (x, raw), [g.to(t) for g, t in zip(cotangents, outputs)])
    return tuple(t.detach() for t in (*outputs, *grads))


def flat(x: Tensor, raw: Tensor, call: Call) -> tuple[Tensor, Tensor, fk.SplineForm]:
    """Every transformed element as a row of its own."""
    form = dataclasses.replace(call.form, layout=TRAILING, bound=None)
    return (
        split_passive(x, call.passive or 0)[1].reshape(-1, 1),
        reference.split_raw(raw, call.form).reshape(-1, 1, form.parameters),
        form,
    )


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The largest errors of the transformed elements: shape (n,), that of raw's gradient for all of its numbers."""

    y: Tensor
    log_det: Tensor
    grad_x: Tensor
    grad_raw: Tensor


def allowed(
    x: Tensor,
    raw: Tensor,
    saved: Tensor,
    grads: tuple[Tensor, Tensor],
    call: Call,
    dtype: torch.dtype,
    raw_dtype: torch.dtype,
) -> Allowed:
    """What rounding may do. Knots are sums of widths in a box of some size: where they lie is known up to a few units
    of its rounding, so a result may be the exact one of a point that far away, wherever that is, beyond a knot too.
    To this is added the tolerance of the dtype, for gradients in units of the larger of their two terms.

    `saved` is the point in the domain of the spline; `grads` are those of y and log_det, one per element.
    """
    wide = torch.promote_types(dtype, torch.float32)
    left, right, bottom, top = call.form.extent
    step = 8 * torch.finfo(wide).eps * max(right - left, top - bottom)
    v, view, form = flat(x, raw, call)
    points = flat(saved, raw, call)[0]
    gy, gl = grads
    options = (None, form, 0, call.inverse)

    def forward(offset: float) -> tuple[Tensor, Tensor]:
        y, log_det = reference.forward(v + offset, view, *options)
        return y.flatten(), log_det

    def backward(offset: float, gy: Tensor = gy, gl: Tensor = gl) -> tuple[Tensor, Tensor]:
        grad_x, grad_raw, _ = reference.backward(gy[:, None], gl, points + offset, view, *options)
        return grad_x.flatten(), grad_raw.flatten(1)

    def spread(function) -> list[Tensor]:
        middle = function(0.0)
        moved = [function(sign * step * size) for sign in (-1, 1) for size in (0.5, 1.0)]
        found = [torch.stack([(m[i] - middle[i]).abs() for m in moved]).amax(0) for i in range(2)]
        return [2 * (f if f.dim() == 1 else f.amax(1)) for f in found]

    zero = torch.zeros_like(gy)
    terms = [backward(0.0, gy, zero), backward(0.0, zero, gl)]
    of_x = sum(t[0].abs() for t in terms)
    size = 1 + of_x + sum(t[1].abs().amax(1) for t in terms)
    (y, _), (spread_y, spread_log), (spread_x, spread_raw) = forward(0.0), spread(forward), spread(backward)
    return Allowed(
        tolerance(dtype) * (1 + y.abs()) + spread_y,
        tolerance(wide) + spread_log,
        tolerance(dtype) * size + spread_x,
        max(tolerance(wide), tolerance(raw_dtype)) * size + spread_raw,
    )


BY_FORM = [
    Call(form=form, shape=shape, inverse=inverse, passive=passive)
    for form in FORMS
    for inverse in (False, True)
    for shape, passive in (((5, 7), 3), ((2, 3, 2, 2), -1), ((40, 9), None))
]

BY_SHAPE = [
    *(Call(shape=(rows, 33)) for rows in (0, 1, 31, 127)),
    *(Call(shape=(3, n), passive=p, inverse=n % 2 == 1) for n in (1, 2, 4, 31, 64, 127, 1025) for p in (0, n // 2)),
    Call(shape=(2, 16390)),
    Call(shape=(130, 2), passive=1),
    Call(shape=(3, 0)),
    Call(shape=(3, 5), passive=5),
    Call(shape=(3, 5), passive=-5),
    Call(shape=(0, 4, 3, 3), passive=2),
    Call(shape=(3, 4, 0, 2)),
    Call(shape=(2, 6, 5, 3), passive=2),
    Call(shape=(2, 4, 32, 20), passive=-2),
    Call(shape=(2, 3, 2, 2, 2)),
    Call(shape=(2, 2, 2, 3, 2, 2), strides="slice"),
    Call(form=fk.SplineForm(130, 3.0), shape=(3, 5)),
]

BY_DIVISION = [
    dataclasses.replace(call, inverse=inverse)
    for inverse in (False, True)
    for call in (
        Call(shape=(4, 6, 6), mask="dense"),
        Call(shape=(3, 4, 6, 5), mask="checkerboard"),
        Call(shape=(70, 3, 2), mask="dense", form=FORMS[-2]),
        Call(shape=(3, 4, 6, 6), mask="checkerboard", strides="channels_last"),
    )
]

BY_STRIDES = [
    Call(shape=shape, passive=passive, strides=strides, form=form)
    for shape, passive in (((9, 12), 4), ((4, 6, 4, 5), -2))
    for strides in ("offset", "slice", "transposed", "expanded", "channels_last")
    if len(shape) == 4 or strides != "channels_last"
    for form in (EIGHT, dataclasses.replace(EIGHT, layout=TRAILING, bound=None))
]

ALL = [*BY_FORM, *BY_SHAPE, *BY_DIVISION, *BY_STRIDES]
SMALL = [call for call in ALL if 0 < math.prod(call.shape) < 50 and call.form.bins < 20]
