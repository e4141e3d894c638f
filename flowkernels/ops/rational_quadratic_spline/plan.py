"""From a call of a rational-quadratic spline to the one plan that every backend takes: the struct of
csrc/flow/rational_quadratic_spline.h.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..layout import allocate_like, allocate_log_det, split_passive
from ..native import DTYPES, Launch
from ..plans import box, layout, made, plans
from . import reference
from .check import check
from .form import DERIVATIVES, NORMALIZATIONS, TAILS, SplineForm

Views = list[tuple[str, Tensor, Tensor]]


def _constants(form: SplineForm) -> dict[str, object]:
    """`SplineOptions`."""
    left, right, bottom, top = form.extent
    width_clip, derivative_clip = reference.softclip_bounds(form)
    width_shift, height_shift = reference.size_shifts(form)
    return {
        "bins": form.bins,
        "normalization": NORMALIZATIONS.index(form.normalization),
        "derivative": DERIVATIVES.index(form.derivative),
        "tails": TAILS.index(form.tails),
        "left_side": form.side == "left",
        "left": left,
        "right": right,
        "bottom": bottom,
        "top": top,
        "min_width": form.min_width,
        "min_height": form.min_height,
        "min_derivative": form.min_derivative,
        "logit_scale": form.logit_scale,
        "width_clip": width_clip,
        "derivative_clip": derivative_clip,
        "width_shift": width_shift,
        "height_shift": height_shift,
        "derivative_shift": reference.DERIVATIVE_SHIFT if form.derivative == "softplus_shifted" else 0.0,
    }


def _common(
    named: list[tuple[str, Tensor]], raws: Views, mask: Tensor | None, form: SplineForm, passive: int, inverse: bool
) -> dict[str, object]:
    """What both plans hold. `named` are tensors of x's shape; the first decides the order of the walk."""
    active: Views = []
    kept: Views = []
    for name, base in named:
        kept_view, active_view = split_passive(base, passive)
        active.append((name, active_view, base))
        kept.append((name + "_passive", kept_view, base))
    like = active[0][1]
    parameters = [(name, reference.split_raw(view, form), base) for name, view, base in raws]
    active += [(name, view[..., 0], base) for name, view, base in parameters]
    if mask is not None:
        active.append(("mask", mask.expand(like.shape), mask))
    active_size, active_views = box(active)
    kept_size, kept_views = box(kept)
    return {
        **_constants(form),
        "inverse": inverse,
        "has_mask": mask is not None,
        "x_dtype": DTYPES[like.dtype],
        "raw_dtype": DTYPES[raws[0][1].dtype],
        "active": active_size,
        "passive": kept_size,
        **{name + "_step": view.stride(-1) for name, view, _ in parameters},
        **active_views,
        **kept_views,
    }


def _dense_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(x.shape[1:]).contiguous()


def forward(
    module: ModuleType,
    launch: Launch,
    x: Tensor,
    raw: Tensor,
    mask: Tensor | None,
    form: SplineForm,
    passive: int,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a backend."""
    key = (
        "SplineForward", module, form, passive, inverse, x.shape, x.stride(), x.dtype, x.device,
        raw.shape, raw.stride(), raw.dtype, raw.device, layout(mask),
    )  # fmt: skip
    plan = plans.get(key, key)
    if plan is key:
        check(x, raw, mask, form, passive, inverse)
    y, log_det = allocate_like(x), allocate_log_det(x)
    if plan is key:
        named, raws = [("y", y), ("x", x)], [("raw", raw, raw)]
        plan = made(key, lambda: module.SplineForward(**_common(named, raws, mask, form, passive, inverse)))
    if plan is None:
        copies = (x.contiguous(), raw.contiguous(), _dense_mask(mask, x))
        result, log_det = forward(module, launch, *copies, form, passive, inverse)
        return y.copy_(result), log_det
    launch(plan, x.device, x, raw, mask, y, log_det)
    return y, log_det


def backward(
    module: ModuleType,
    launch: Launch,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    raw: Tensor,
    mask: Tensor | None,
    form: SplineForm,
    passive: int,
    inverse: bool,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, None]:
    """`reference.backward` by a backend; None for what `wanted` leaves out."""
    grad_x = allocate_like(saved) if wanted[0] else None
    grad_raw = allocate_like(raw) if wanted[1] else None
    key = (
        "SplineBackward", module, form, passive, inverse, wanted, layout(grad_y),
        grad_log_det is not None and grad_log_det.stride(), saved.shape, saved.stride(), saved.dtype, saved.device,
        raw.shape, raw.stride(), raw.dtype, raw.device, layout(mask),
    )  # fmt: skip
    plan = plans.get(key, key)
    if plan is key:
        like = allocate_like(saved) if grad_x is None else grad_x
        named = [("grad_x", like), ("grad_y", like if grad_y is None else grad_y), ("saved", saved)]
        written = torch.empty_like(raw) if grad_raw is None else grad_raw
        raws: Views = [("raw", raw, raw), ("grad_raw", written, written)]
        plan = made(
            key,
            lambda: module.SplineBackward(
                grad_log_det_stride=0 if grad_log_det is None else grad_log_det.stride(0),
                **_common(named, raws, mask, form, passive, inverse),
            ),
        )
    if plan is None:
        copies = [None if t is None else t.contiguous() for t in (grad_y, grad_log_det, saved, raw)]
        results = backward(module, launch, *copies, _dense_mask(mask, saved), form, passive, inverse, wanted)
        for gradient, result in zip((grad_x, grad_raw), results):
            if gradient is not None:
                gradient.copy_(result)
        return grad_x, grad_raw, None
    launch(plan, saved.device, grad_y, grad_log_det, saved, raw, mask, grad_x, grad_raw)
    return grad_x, grad_raw, None
