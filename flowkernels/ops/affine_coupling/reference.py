"""The specification of affine coupling, in plain PyTorch: what every other backend is tested against.

Forward and backward are both written out, so that the gradient formulas are specified too; the tests hold the second
to what autograd makes of the first. Everything is computed in float32, or float64 where x is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import accumulation_dtype, merge_passive, split_passive
from .form import AffineForm


def split_raw(raw: Tensor, shift: Tensor | None, form: AffineForm) -> tuple[Tensor | None, Tensor]:
    """The views (scale, shift) of raw conditioner output."""
    if form.scale == "additive":
        return None, raw
    if shift is not None:
        return raw, shift
    if form.layout == "interleaved_shift_scale":
        return raw[:, 1::2], raw[:, 0::2]
    if form.layout.startswith("trailing"):
        first, second = raw.unbind(-1)
    else:
        first, second = raw[:, : raw.shape[1] // 2], raw[:, raw.shape[1] // 2 :]
    return (first, second) if form.layout.endswith("scale_shift") else (second, first)


def _per_channel(bound: Tensor, dim: int) -> Tensor:
    return bound.reshape(-1, *(1,) * (dim - 2))


def _softplus(s: Tensor) -> Tensor:
    return torch.logaddexp(s, torch.zeros_like(s))


def _log_scale(s: Tensor, form: AffineForm, c: Any) -> Tensor:
    match form.scale:
        case "exp":
            return s
        case "tanh":
            return c * torch.tanh(s / c)
        case "tanh_scaled":
            return c * torch.tanh(s)
        case "atan":
            return 0.636 * c * torch.atan(s)
        case "atan_legacy":
            return 0.636 * c * torch.atan(s / c)
        case "sigmoid_centered":
            return c * torch.tanh(s / 2)
        case "softclip":
            return s / (1 + s.abs() / c)
    raise AssertionError(form.scale)


def _scale(s: Tensor, form: AffineForm) -> Tensor:
    eps = form.constant("eps")
    match form.scale:
        case "sigmoid":
            return torch.sigmoid(s + form.constant("offset")) + eps
        case "softplus":
            return (_softplus(s) + eps).clamp(max=form.constant("maximum"))
        case "exp_floor":
            return torch.exp(math.log1p(-eps) + s / 2) + eps
        case "given":
            return s
    raise AssertionError(form.scale)


def _multiplier(s: Tensor, form: AffineForm, c: Any, divide: bool) -> tuple[Tensor, Tensor]:
    """m and log |m|."""
    if form.scale == "exp" or form.bounded:
        log_m = _log_scale(s, form, c) * (-1 if divide else 1)
        return torch.exp(log_m), log_m
    a = _scale(s, form)
    if form.scale == "sigmoid" and form.constant("eps") == 0:
        log_a = F.logsigmoid(s + form.constant("offset"))
    else:
        log_a = torch.log(a.abs())
    return (1 / a, -log_a) if divide else (a, log_a)


def _sech2(u: Tensor) -> Tensor:
    # 1 - tanh^2 cancels to 0 beyond |u| = 9 in float32; this form keeps its relative accuracy.
    e = torch.exp(-2 * u.abs())
    return 4 * e / (1 + e) ** 2


def _slope(s: Tensor, form: AffineForm, c: Any) -> tuple[Tensor, Any]:
    """d log a / ds, and d log a / dc for the maps with a bound."""
    eps = form.constant("eps")
    match form.scale:
        case "exp":
            return torch.ones_like(s), None
        case "tanh":
            u = s / c
            return _sech2(u), torch.tanh(u) - u * _sech2(u)
        case "tanh_scaled":
            return c * _sech2(s), torch.tanh(s)
        case "atan":
            return 0.636 * c / (1 + s * s), 0.636 * torch.atan(s)
        case "atan_legacy":
            u = s / c
            return 0.636 / (1 + u * u), 0.636 * (torch.atan(u) - u / (1 + u * u))
        case "sigmoid_centered":
            return c / 2 * _sech2(s / 2), torch.tanh(s / 2)
        case "softclip":
            u = s / c
            return 1 / (1 + u.abs()) ** 2, (u / (1 + u.abs())) * (u.abs() / (1 + u.abs()))
        case "sigmoid":
            v = s + form.constant("offset")
            share = 1 if eps == 0 else torch.sigmoid(v) / (torch.sigmoid(v) + eps)
            return torch.sigmoid(-v) * share, None
        case "softplus":
            a = _softplus(s) + eps
            return torch.where(a > form.constant("maximum"), torch.zeros_like(s), torch.sigmoid(s) / a), None
        case "exp_floor":
            e = torch.exp(math.log1p(-eps) + s / 2)
            return 0.5 * e / (e + eps), None
        case "given":
            return 1 / s, None
    raise AssertionError(form.scale)


def flags(form: AffineForm, inverse: bool) -> tuple[bool, bool, float]:
    """(divide, shift first, factor of the shift): the inverse of one order is the other order with both flipped."""
    divide = form.reciprocal != inverse
    shift_first = (form.order == "shift_first") != inverse
    return divide, shift_first, -form.prescale if inverse else form.prescale


def _bound(form: AffineForm, bound: Tensor | None, like: Tensor) -> Tensor | float | None:
    return form.bound if bound is None else _per_channel(bound.to(like.dtype), like.dim())


def _sum_event(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def forward(
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """y and log_det of the coupling; the arguments are checked by the caller."""
    dtype = accumulation_dtype(x.dtype)
    divide, shift_first, shift_factor = flags(form, inverse)
    kept, active = split_passive(x, passive)
    s, t = split_raw(raw, shift, form)
    if mask is not None:  # before the formula: a NaN there would reach the gradient as 0 * NaN
        s = None if s is None else torch.where(mask, torch.ones_like(s), s)
        t = torch.where(mask, torch.zeros_like(t), t)
    t = t.to(dtype) * shift_factor
    if s is None:
        m, log_m = torch.ones_like(t), torch.zeros_like(t)
    else:
        s = s.to(dtype) * form.prescale
        m, log_m = _multiplier(s, form, _bound(form, bound, s), divide)
    z = active.to(dtype)
    y = m * (z + t) if shift_first else m * z + t
    y = y.to(x.dtype)
    if mask is not None:
        y = torch.where(mask, active, y)
        log_m = torch.where(mask, torch.zeros_like(log_m), log_m)
    return (merge_passive(kept, y, passive) if passive else y), _sum_event(log_m)


def saves_output(form: AffineForm, inverse: bool) -> bool:
    """Whether the gradient needs y; else it needs x. It never needs the shift."""
    return flags(form, inverse)[1]


def _shape_only(tensor: Tensor) -> Tensor:
    """A tensor of this shape and dtype that holds one element: backward does not read its values."""
    return tensor.new_empty(()).expand(tensor.shape)


def saved(tensors: Sequence[Any], outputs: tuple, options: tuple) -> tuple[Tensor | None, ...]:
    """What backward reads, no more than the gradient needs: never the shift, nothing for an additive form."""
    x, raw, shift, mask, bound = tensors
    form, _, inverse = options
    if shift is not None:
        shift = _shape_only(shift)
    if form.scale == "additive":
        return _shape_only(x), _shape_only(raw), shift, mask, bound
    return (outputs[0] if saves_output(form, inverse) else x), raw, shift, mask, bound


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
) -> tuple[Tensor, Tensor, Tensor | None, None, Tensor | None]:
    """Gradients of x, raw, shift (where raw is a pair), the mask (None) and bound (where it is a tensor).

    `saved` is y where `saves_output`, else x; nothing but its existence is read of `shift`. A missing gradient of an
    output is None.
    """
    dtype = accumulation_dtype(saved.dtype)
    divide, shift_first, shift_factor = flags(form, inverse)
    if grad_y is None:
        grad_y = torch.zeros_like(saved)
    kept, grad = split_passive(grad_y, passive)
    _, z = split_passive(saved, passive)
    if mask is not None:
        grad = torch.where(mask, torch.zeros_like(grad), grad)
    g = grad.to(dtype)
    grad_bound = None
    if form.scale == "additive":
        s, grad_x, grad_s = None, g, None
    else:
        s = split_raw(raw, shift, form)[0].to(dtype) * form.prescale
        if mask is not None:
            s = torch.where(mask, torch.ones_like(s), s)
        c = _bound(form, bound, s)
        m, _ = _multiplier(s, form, c, divide)
        slope, bound_slope = _slope(s, form, c)
        grad_x = g * m
        grad_log_m = (g if shift_first else grad_x) * z.to(dtype)
        if grad_log_det is not None:
            grad_log_m = grad_log_m + grad_log_det.to(dtype).reshape(-1, *(1,) * (z.dim() - 1))
        if mask is not None:
            grad_log_m = torch.where(mask, torch.zeros_like(grad_log_m), grad_log_m)
        grad_log_a = -grad_log_m if divide else grad_log_m
        grad_s = slope * grad_log_a * form.prescale
        if bound is not None:
            grad_bound = (bound_slope * grad_log_a).transpose(0, 1).flatten(1).sum(1).to(bound.dtype)
    grad_t = shift_factor * (grad_x if shift_first else g)
    grad_x = grad_x.to(saved.dtype)
    if mask is not None:
        grad_x = torch.where(mask, split_passive(grad_y, passive)[1], grad_x)
    if passive:
        grad_x = merge_passive(kept, grad_x, passive)
    if shift is not None:
        return grad_x, grad_s.to(raw.dtype), grad_t.to(raw.dtype), None, grad_bound
    return grad_x, _join_raw(grad_s, grad_t, form).to(raw.dtype), None, None, grad_bound


def _join_raw(s: Tensor | None, t: Tensor, form: AffineForm) -> Tensor:
    """What `split_raw` took apart."""
    if s is None:
        return t
    pair = (s, t) if form.layout.endswith("scale_shift") else (t, s)
    if form.layout.startswith("trailing"):
        return torch.stack(pair, dim=-1)
    if form.layout == "interleaved_shift_scale":
        return torch.stack((t, s), dim=2).flatten(1, 2)
    return torch.cat(pair, dim=1)
