"""Affine coupling by the compiled modules: one runner for the CPU module and the CUDA one, which take the same plan.

A plan holds everything about a call but the addresses. It is made once per (form, shapes, strides, dtypes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from ..._compat import current_stream
from ..layout import TooManyDimensions, allocate_like, allocate_log_det, coalesce
from . import reference
from .check import check
from .form import SCALE_MAP_IDS, AffineForm

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_MAX_PLANS = 4096

# The values are None where a call has to be made with contiguous copies.
_plans: dict[tuple, object | None] = {}


def _layout(tensor: Tensor | None) -> tuple | None:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _box(named: list[tuple[str, Tensor, Tensor]]) -> tuple[list[int], dict[str, list[int]]]:
    """The common extent of (name, view, base) triples, and each view's offset from its base and strides.

    The first decides the order in which a row is walked.
    """
    views = [view for _, view, _ in named]
    sizes, strides = coalesce(views[0].shape[1:], [view.stride()[1:] for view in views], 0)
    return [views[0].shape[0], *sizes], {
        name: [view.storage_offset() - base.storage_offset(), view.stride(0), *stride]
        for (name, view, base), stride in zip(named, strides)
    }


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
        kept_view, active_view = reference.split_passive(base, passive)
        active.append((name, active_view, base))
        kept.append((name + "_passive", kept_view, base))
    like = active[0][1]
    active += raw_views
    if mask is not None:
        active.append(("mask", mask.expand(like.shape), mask))
    if bound is not None:
        active.append(("bound_view", bound.reshape(-1, *(1,) * (like.dim() - 2)).expand(like.shape), bound))
    active_size, active_views = _box(active)
    kept_size, kept_views = _box(kept)
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
        "x_dtype": _DTYPES[like.dtype],
        "raw_dtype": _DTYPES[raw_views[-1][1].dtype],
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


def _remember(key: tuple, make: Callable[[], object]) -> object | None:
    """The plan that `make` makes, or None where the call needs contiguous copies."""
    try:
        plan = make()
    except TooManyDimensions:
        plan = None
    if len(_plans) >= _MAX_PLANS:
        _plans.clear()
    _plans[key] = plan
    return plan


def _launch(plan: object, device: torch.device, *pointers: int) -> None:
    workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=device) if plan.workspace else None
    stream = current_stream(device) if device.type == "cuda" else 0
    plan(*pointers, _address(workspace), device.index or 0, stream)


def forward(
    module: ModuleType,
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.forward` in one launch."""
    y, log_det = allocate_like(x), allocate_log_det(x)
    key = (module, _layout(x), _layout(raw), _layout(shift), _layout(mask), _layout(bound), form, passive, inverse)
    if (plan := _plans.get(key, key)) is key:
        check(x, raw, shift, mask, bound, form, passive)
        raw_views = _raw_views("", raw, shift, form)
        named = [("y", y), ("x", x)]
        plan = _remember(
            key, lambda: module.AffineForward(**_common(named, raw_views, mask, bound, form, passive, inverse))
        )
    if plan is None:
        copies = (None if t is None else t.contiguous() for t in (x, raw, shift, _expanded(mask, x)))
        return forward(module, *copies, bound, form, passive, inverse)
    scale, shift = (None, raw) if form.scale == "additive" else (raw, raw if shift is None else shift)
    pointers = [_address(t) for t in (x, scale, shift, mask, bound, y, log_det)]
    _launch(plan, x.device, *pointers)
    return y, log_det


def _expanded(mask: Tensor | None, x: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(x.shape[1:])


def backward(
    module: ModuleType,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    raw: Tensor,
    paired: bool,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`reference.backward` in one launch, or two where something is reduced over the batch.

    `wanted` says which of (x, raw and shift, bound) need a gradient; the others are None.
    """
    grad_x = allocate_like(saved) if wanted[0] else None
    grad_raw = allocate_like(raw) if wanted[1] else None
    grad_shift = allocate_like(raw) if wanted[1] and paired else None
    grad_bound = torch.empty_like(bound) if wanted[2] else None
    key = (
        module,
        _layout(grad_y),
        grad_log_det is None or grad_log_det.stride(),
        _layout(saved),
        _layout(raw),
        _layout(mask),
        _layout(bound),
        (form, passive, inverse, paired, wanted),
    )
    if (plan := _plans.get(key, key)) is key:
        plan = _remember(
            key,
            lambda: module.AffineBackward(
                grad_log_det_stride=0 if grad_log_det is None else grad_log_det.stride(0),
                **_backward_views(
                    grad_y, saved, raw, paired, mask, bound, form, passive, inverse, grad_x, grad_raw, grad_shift
                ),
            ),
        )
    if plan is None:
        copies = [None if t is None else t.contiguous() for t in (grad_y, grad_log_det, saved, raw)]
        mask = None if mask is None else _expanded(mask, saved).contiguous()
        return backward(module, *copies, paired, mask, bound, form, passive, inverse, wanted)
    additive = form.scale == "additive"
    pointers = [
        _address(t)
        for t in (
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
    ]
    _launch(plan, saved.device, *pointers)
    return grad_x, grad_raw, grad_shift, grad_bound


def _backward_views(
    grad_y, saved, raw, paired, mask, bound, form, passive, inverse, grad_x, grad_raw, grad_shift
) -> dict[str, object]:
    """The common part of a backward plan; a tensor that is absent has the views of one of its shape."""
    like = allocate_like(saved) if grad_x is None else grad_x
    grads = raw if grad_raw is None else grad_raw
    named = [("grad_x", like), ("grad_y", like if grad_y is None else grad_y), ("saved", saved)]
    raw_views = [
        (name, view, base)
        for name, view, base in _raw_views("", raw, raw if paired else None, form)
        if name == "scale"
    ]
    raw_views += _raw_views("grad_", grads, (raw if grad_shift is None else grad_shift) if paired else None, form)
    return _common(named, raw_views, mask, bound, form, passive, inverse)
