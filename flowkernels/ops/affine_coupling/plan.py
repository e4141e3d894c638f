"""From a call of affine coupling to the one plan that every backend takes: the struct of csrc/flow/affine_coupling.h.

A plan holds everything about a call but the addresses. It is made once per (backend, form, shapes, strides, dtypes) and
kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..layout import allocate_like, allocate_log_det, split_passive
from ..native import DTYPES, Launch
from ..plans import box, layout, made, plans
from . import reference
from .check import check
from .form import SCALE_MAP_IDS, AffineForm


class Backend(Protocol):
    """A compiled module, or what stands in its place."""

    AffineForward: Callable[..., Any]
    AffineBackward: Callable[..., Any]


def _common(
    named: list[tuple[str, Tensor]],
    raw_views: list[tuple[str, Tensor, Tensor]],
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> dict[str, object]:
    """What both plans hold. `named` are tensors of x's shape; the first decides the order of the walk."""
    active, kept = [], []
    for name, base in named:
        kept_view, active_view = split_passive(base, passive)
        active.append((name, active_view, base))
        kept.append((name + "_passive", kept_view, base))
    like = active[0][1]
    active += raw_views
    if mask is not None:
        active.append(("mask", mask.expand(like.shape), mask))
    if bound is not None:
        active.append(("bound_view", bound.reshape(-1, *(1,) * (like.dim() - 2)).expand(like.shape), bound))
    active_size, active_views = box(active)
    kept_size, kept_views = box(kept)
    divide, shift_first, shift_factor = reference.flags(form, inverse)
    first, second = _constants(form)
    return {
        "map": _map_id(form),
        "divide": divide,
        "shift_first": shift_first,
        "has_mask": mask is not None,
        "has_bound_tensor": bound is not None,
        "bound": form.bound or 1.0,
        "first": first,
        "second": second,
        "scale_factor": form.prescale,
        "shift_factor": shift_factor,
        "channels": 0 if bound is None else bound.shape[0],
        "x_dtype": DTYPES[like.dtype],
        "raw_dtype": DTYPES[raw_views[-1][1].dtype],
        "active": active_size,
        "passive": kept_size,
        **active_views,
        **kept_views,
    }


def _map_id(form: AffineForm) -> int:
    floor = form.scale == "sigmoid" and form.constant("eps") > 0
    return SCALE_MAP_IDS["sigmoid_floor" if floor else form.scale]


def _constants(form: AffineForm) -> tuple[float, float]:
    """`first` and `second` of AffineConstants."""
    if form.scale == "sigmoid":
        return form.constant("offset"), form.constant("eps")
    if form.scale == "softplus":
        return form.constant("eps"), form.constant("maximum")
    if form.scale == "exp_floor":
        return math.log1p(-form.constant("eps")), form.constant("eps")
    return 0.0, 0.0


def _raw_views(prefix: str, raw: Tensor, shift: Tensor | None, form: AffineForm) -> list[tuple[str, Tensor, Tensor]]:
    s, t = reference.split_raw(raw, shift, form)
    views = [] if s is None else [(f"{prefix}scale", s, raw)]
    return [*views, (f"{prefix}shift", t, raw if shift is None else shift)]


def _backward_views(
    grad_y, saved, raw, shift, mask, bound, form, passive, inverse, grad_x, grad_raw, grad_shift
) -> dict[str, object]:
    """The common part of a backward plan; a tensor that is absent has the views of one of its shape."""
    like = allocate_like(saved) if grad_x is None else grad_x
    grads = raw if grad_raw is None else grad_raw
    named = [("grad_x", like), ("grad_y", like if grad_y is None else grad_y), ("saved", saved)]
    raw_views = [(name, view, base) for name, view, base in _raw_views("", raw, shift, form) if name == "scale"]
    raw_views += _raw_views("grad_", grads, None if shift is None else raw if grad_shift is None else grad_shift, form)
    return _common(named, raw_views, mask, bound, form, passive, inverse)


def _expanded(mask: Tensor | None, x: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(x.shape[1:])


def _dense(bound: Tensor | None) -> Tensor | None:
    """The bound in one piece: an offset in it is then the number of a channel."""
    return None if bound is None else bound.contiguous()


def forward(
    backend: Backend,
    launch: Launch,
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a backend."""
    # Half of the time of a small call is Python's: the key is flat, and rare arguments cost nothing when absent.
    rare = None
    if shift is not None or mask is not None or bound is not None:
        bound = _dense(bound)
        rare = (layout(shift), layout(mask), layout(bound))
    key = (
        backend, form, passive, inverse, x.shape, x.stride(), x.dtype, x.device,
        raw.shape, raw.stride(), raw.dtype, raw.device, rare,
    )  # fmt: skip
    plan = plans.get(key, key)
    y, log_det = allocate_like(x), allocate_log_det(x)
    if plan is key:
        check(x, raw, shift, mask, bound, form, passive, inverse)
        raw_views = _raw_views("", raw, shift, form)
        named = [("y", y), ("x", x)]
        plan = made(
            key, lambda: backend.AffineForward(**_common(named, raw_views, mask, bound, form, passive, inverse))
        )
    if plan is None:
        copies = (None if t is None else t.contiguous() for t in (x, raw, shift, _expanded(mask, x)))
        result, log_det = forward(backend, launch, *copies, bound, form, passive, inverse)
        return y.copy_(result), log_det
    scale, shift = (None, raw) if form.scale == "additive" else (raw, raw if shift is None else shift)
    launch(plan, x.device, x, scale, shift, mask, bound, y, log_det)
    return y, log_det


def backward(
    backend: Backend,
    launch: Launch,
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
    wanted: tuple[bool, bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, Tensor | None]:
    """`reference.backward` by a backend.

    `wanted` says which of (x, raw, shift, mask, bound) need a gradient; raw and shift have theirs together.
    """
    paired, of_raw = shift is not None, wanted[1] or wanted[2]
    grad_x = allocate_like(saved) if wanted[0] else None
    grad_raw = allocate_like(raw) if of_raw else None
    grad_shift = allocate_like(raw) if paired and of_raw else None
    bound = _dense(bound)
    grad_bound = torch.empty_like(bound) if wanted[4] else None
    rare = None
    if grad_y is None or grad_log_det is None or mask is not None or bound is not None:
        rare = (grad_y is None, grad_log_det is None, layout(mask), layout(bound))
    key = (
        backend, form, passive, inverse, paired, wanted, grad_y is not None and grad_y.stride(),
        grad_log_det is not None and grad_log_det.stride(), saved.shape, saved.stride(), saved.dtype,
        saved.device, raw.shape, raw.stride(), raw.dtype, raw.device, rare,
    )  # fmt: skip
    plan = plans.get(key, key)
    if plan is key:
        plan = made(
            key,
            lambda: backend.AffineBackward(
                grad_log_det_stride=0 if grad_log_det is None else grad_log_det.stride(0),
                **_backward_views(
                    grad_y, saved, raw, shift, mask, bound, form, passive, inverse, grad_x, grad_raw, grad_shift
                ),
            ),
        )
    if plan is None:
        copies = [None if t is None else t.contiguous() for t in (grad_y, grad_log_det, saved, raw)]
        mask = None if mask is None else _expanded(mask, saved).contiguous()
        results = backward(backend, launch, *copies, shift, mask, bound, form, passive, inverse, wanted)
        grads = (grad_x, grad_raw, grad_shift, None, grad_bound)
        return tuple(None if g is None else g.copy_(r) for g, r in zip(grads, results))
    additive = form.scale == "additive"
    launch(
        plan,
        saved.device,
        grad_y,
        grad_log_det,
        saved,
        None if additive else raw,
        mask,
        bound,
        grad_x,
        None if additive else grad_raw,
        grad_shift if paired else grad_raw,
        grad_bound,
    )
    return grad_x, grad_raw, grad_shift, None, grad_bound
