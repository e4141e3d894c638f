"""The specification of rational-quadratic splines, in plain PyTorch: what every other backend is tested against.

Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows" (2019), section 3.1. In the bin with corners (x_k, y_k),
width w, height h, slope s = h / w and derivatives d0, d1 at its ends, with t = (x - x_k) / w and p = t (1 - t):

    y = y_k + h (s t² + d0 p) / q         q = s (1 - 2 p) + (d0 + d1) p
    dy/dx = (s / q)² m                    m = d1 t² + 2 s p + d0 (1 - t)²

with sums of positive terms only. The inverse solves the quadratic equation for t; with v = (y - y_k) / h and
e = d0 (1 - v) - d1 v its discriminant is e² + 4 s² v (1 - v), which is not negative.

Forward and backward are both written out; the tests hold the second to what autograd makes of the first. Everything is
computed in float32, or float64 where x is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import accumulation_dtype, merge_passive, split_passive, sum_rows
from .form import SplineForm, shift_for


class Raw(NamedTuple):
    """Raw numbers of each element: of shape (..., K), of shape (...) for an origin, (..., derivatives)."""

    widths: Tensor
    heights: Tensor
    bottom: Tensor | None
    left: Tensor | None
    derivatives: Tensor


class Grid(NamedTuple):
    """The boxes and bins of all elements; `slope` is that of the box's diagonal."""

    left: Any
    widths: Tensor
    bottom: Any
    heights: Tensor
    slope: Any
    derivatives: Tensor


class Bin(NamedTuple):
    """The bin that each element lies in."""

    number: Tensor
    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    first: Tensor
    last: Tensor


def split_raw(raw: Tensor, form: SplineForm) -> Tensor:
    """A view of raw with the parameters of an element along the last dimension."""
    if form.layout.startswith("trailing"):
        return raw
    return raw.unflatten(1, (raw.shape[1] // form.parameters, form.parameters)).movedim(2, -1)


def _join_raw(view: Tensor, form: SplineForm) -> Tensor:
    """What `split_raw` took apart."""
    return view if form.layout.startswith("trailing") else view.movedim(-1, 2).flatten(1, 2)


def _parts(view: Tensor, form: SplineForm) -> Raw:
    k = form.bins
    origin = form.normalization == "softplus"
    return Raw(
        view[..., :k],
        view[..., k : 2 * k],
        view[..., 2 * k] if origin else None,
        view[..., 2 * k + 1] if origin else None,
        view[..., 2 * k + 2 * origin :],
    )


def _softplus(v: Tensor) -> Tensor:
    return torch.logaddexp(v, torch.zeros_like(v))


def softclip_bounds(form: SplineForm) -> tuple[float, float]:
    """c of v / (1 + abs(v) / c) for widths and heights, and for derivatives."""
    return -math.log(form.slope) / 2, -math.log(form.slope)


def size_shifts(form: SplineForm) -> tuple[float, float]:
    """What is added to raw widths, and to raw heights, before an unnormalised softplus; 0 for normalised sizes."""
    if form.normalization != "softplus":
        return 0.0, 0.0
    left, right, bottom, top = form.extent
    return (
        shift_for((right - left) / form.bins - form.min_width),
        shift_for((top - bottom) / form.bins - form.min_height),
    )


DERIVATIVE_SHIFT = shift_for(1.0)


def _shares(raw: Tensor, form: SplineForm) -> Tensor:
    if form.normalization == "softmax":
        return torch.softmax(raw * form.logit_scale, -1)
    return torch.softmax(raw / (1 + raw.abs() / softclip_bounds(form)[0]), -1)


def _sizes(raw: Tensor, total: float, least: float, shift: float, form: SplineForm) -> Tensor:
    if form.normalization == "softplus":
        return least + _softplus(raw + shift)
    return total * (least + (1 - form.bins * least) * _shares(raw, form))


def _sizes_backward(grad: Tensor, raw: Tensor, total: float, least: float, shift: float, form: SplineForm) -> Tensor:
    """The gradient of raw widths or heights from that of the sizes."""
    if form.normalization == "softplus":
        return grad * torch.sigmoid(raw + shift)
    share = _shares(raw, form)
    grad = total * (1 - form.bins * least) * share * (grad - (share * grad).sum(-1, keepdim=True))
    if form.normalization == "softmax":
        return grad * form.logit_scale
    return grad / (1 + raw.abs() / softclip_bounds(form)[0]) ** 2


def _derivative(raw: Tensor, form: SplineForm) -> Tensor:
    if form.derivative == "exp_softclip":
        return torch.exp(raw / (1 + raw.abs() / softclip_bounds(form)[1]))
    return form.min_derivative + _softplus(raw + DERIVATIVE_SHIFT * (form.derivative == "softplus_shifted"))


def _derivative_slope(raw: Tensor, form: SplineForm) -> Tensor:
    if form.derivative == "exp_softclip":
        return _derivative(raw, form) / (1 + raw.abs() / softclip_bounds(form)[1]) ** 2
    return torch.sigmoid(raw + DERIVATIVE_SHIFT * (form.derivative == "softplus_shifted"))


def _grid(raw: Raw, form: SplineForm) -> Grid:
    left, right, bottom, top = form.extent
    shifts = size_shifts(form)
    widths = _sizes(raw.widths, right - left, form.min_width, shifts[0], form)
    heights = _sizes(raw.heights, top - bottom, form.min_height, shifts[1], form)
    slope: Any = (top - bottom) / (right - left)
    if raw.left is not None:
        slope = heights.sum(-1) / widths.sum(-1)
    inner = _derivative(raw.derivatives, form)
    if form.tails == "circular":
        derivatives = torch.cat((inner, inner[..., :1]), -1)
    elif form.tails is None:
        derivatives = inner
    else:
        end = torch.ones_like(widths[..., :1]) * (slope[..., None] if isinstance(slope, Tensor) else slope)
        derivatives = torch.cat((end, inner, end), -1)
    return Grid(
        left if raw.left is None else left + raw.left,
        widths,
        bottom if raw.bottom is None else bottom + raw.bottom,
        heights,
        slope,
        derivatives,
    )


def _starts(origin: Any, sizes: Tensor) -> Tensor:
    """Where bins begin."""
    return F.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) + (origin[..., None] if isinstance(origin, Tensor) else origin)


def _outside(value: Tensor, origin: Any, sizes: Tensor, form: SplineForm) -> Tensor:
    end = origin + sizes.sum(-1) if isinstance(origin, Tensor) else form.extent[1 if origin == form.extent[0] else 3]
    return ((value <= origin) if form.side == "left" else (value < origin)) | (value > end)


def _find(value: Tensor, starts: Tensor, grid: Grid, x_starts: Tensor, y_starts: Tensor, form: SplineForm) -> Bin:
    """The bin of each value along one axis, whose bins begin at `starts`."""
    passed = (value[..., None] >= starts) if form.side == "right" else (value[..., None] > starts)
    number = passed[..., 1:].sum(-1, keepdim=True)

    def pick(values: Tensor, index: Tensor = number) -> Tensor:
        return values.gather(-1, index).squeeze(-1)

    return Bin(
        number,
        pick(x_starts),
        pick(grid.widths),
        pick(y_starts),
        pick(grid.heights),
        pick(grid.derivatives),
        pick(grid.derivatives, number + 1),
    )


class Value(NamedTuple):
    """A spline at position t of a bin: y relative to the bin's bottom as a share of its height, and terms of it."""

    share: Tensor
    slope: Tensor
    q: Tensor
    m: Tensor

    def log_slope(self) -> Tensor:
        """log dy/dx."""
        return torch.log(self.m) + 2 * torch.log(self.slope / self.q)


def _evaluate(t: Tensor, b: Bin) -> Value:
    s, p = b.height / b.width, t * (1 - t)
    q = s * (1 - 2 * p) + (b.first + b.last) * p
    m = b.last * t**2 + 2 * s * p + b.first * (1 - t) ** 2
    return Value((s * t**2 + b.first * p) / q, s, q, m)


def _unit(t: Tensor) -> Tensor:
    """Clamped to [0, 1], which it leaves by rounding only: with the gradient of what is not clamped."""
    return t + (t.clamp(0, 1) - t).detach()


def _root(v: Tensor, b: Bin) -> Tensor:
    """t for y = y_k + h v."""
    s = b.height / b.width
    e = b.first * (1 - v) - b.last * v
    rest = 4 * s**2 * v * (1 - v)
    positive = rest > 0
    root = torch.sqrt(torch.where(positive, e**2 + rest, torch.ones_like(e)))  # infinite slope at 0
    root = torch.where(positive, root, e.abs())
    below = torch.where(e < 0, root - e, torch.ones_like(e))
    return 2 * s * v / (2 * s * v + torch.where(e < 0, rest / below, e + root))


def _split_inputs(x: Tensor, raw: Tensor, mask: Tensor | None, form: SplineForm, passive: int) -> tuple:
    """The kept and the active part of x, the latter in the dtype of computation, and the view of raw."""
    dtype = accumulation_dtype(x.dtype)
    kept, active = split_passive(x, passive)
    v, view = active.to(dtype), split_raw(raw, form).to(dtype)
    if mask is not None:  # before the formula: a NaN there would reach the gradient as 0 * NaN
        left, right = form.extent[:2]
        v = torch.where(mask, torch.full_like(v, (left + right) / 2), v)
        view = torch.where(mask[..., None], torch.zeros_like(view), view)
    return kept, active, v, view


def _limit(value: Tensor, outside: Tensor, inner: Tensor) -> Tensor:
    """The values, and inside of the box where they are not: no branch makes NaN or an infinite gradient."""
    return torch.where(outside, inner.detach(), value)


def forward(
    x: Tensor, raw: Tensor, mask: Tensor | None, form: SplineForm, passive: int, inverse: bool
) -> tuple[Tensor, Tensor]:
    """y and log_det; the arguments are checked by the caller."""
    kept, active, v, view = _split_inputs(x, raw, mask, form, passive)
    grid = _grid(_parts(view, form), form)
    x_starts, y_starts = _starts(grid.left, grid.widths), _starts(grid.bottom, grid.heights)
    starts, origin, sizes = (y_starts, grid.bottom, grid.heights) if inverse else (x_starts, grid.left, grid.widths)
    outside = _outside(v, origin, sizes, form)
    inner = _limit(v, outside, starts[..., -1])
    b = _find(inner, starts, grid, x_starts, y_starts, form)
    if inverse:
        t = _root(_unit((inner - b.y) / b.height), b)
        y, log_slope = b.x + b.width * t, -_evaluate(t, b).log_slope()
    else:
        value = _evaluate(_unit((inner - b.x) / b.width), b)
        y, log_slope = b.y + b.height * value.share, value.log_slope()
    tail, tail_log = _tail(v, grid, form, inverse)
    y = torch.where(outside, tail, y).to(x.dtype)
    log_slope = torch.where(outside, tail_log, log_slope)
    if mask is not None:
        y, log_slope = torch.where(mask, active, y), torch.where(mask, torch.zeros_like(log_slope), log_slope)
    return (merge_passive(kept, y, passive) if passive else y), sum_rows(log_slope)


def _tail(v: Tensor, grid: Grid, form: SplineForm, inverse: bool) -> tuple[Tensor, Tensor]:
    """y and log dy/dx outside of the box."""
    if form.tails is None:
        return torch.full_like(v, math.nan), torch.full_like(v, math.nan)
    if form.tails != "affine":
        return v, torch.zeros_like(v)
    slope = grid.slope if isinstance(grid.slope, Tensor) else torch.full_like(v, grid.slope)
    if inverse:
        return grid.left + (v - grid.bottom) / slope, -torch.log(slope)
    return grid.bottom + (v - grid.left) * slope, torch.log(slope)


def saved(tensors: Sequence[Any], outputs: tuple, options: tuple) -> tuple[Tensor | None, ...]:
    """What backward reads: the point in the domain of the spline, whichever way it went."""
    x, raw, mask = tensors
    return (outputs[0] if options[-1] else x), raw, mask


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    raw: Tensor,
    mask: Tensor | None,
    form: SplineForm,
    passive: int,
    inverse: bool,
) -> tuple[Tensor, Tensor, None]:
    """Gradients of x and raw. `saved` is x, or y of the inverse. A missing gradient of an output is None.

    With y = f(x, θ) and l = log dy/dx, the inverse x(y, θ) has dx = (dy - f_θ dθ) / f_x, and its log-determinant is -l:
    its gradients are those of f for other gradients of y and l.
    """
    if grad_y is None:
        grad_y = torch.zeros_like(saved)
    _, _, v, view = _split_inputs(saved, raw, mask, form, passive)
    kept, grad_active = split_passive(grad_y, passive)
    parts = _parts(view, form)
    grid = _grid(parts, form)
    x_starts, y_starts = _starts(grid.left, grid.widths), _starts(grid.bottom, grid.heights)
    outside = _outside(v, grid.left, grid.widths, form)
    inner = _limit(v, outside, x_starts[..., -1])
    b = _find(inner, x_starts, grid, x_starts, y_starts, form)
    t = _unit((inner - b.x) / b.width)
    gy = grad_active.to(v.dtype)
    gl = torch.zeros_like(gy)
    if grad_log_det is not None:
        gl = gl + grad_log_det.to(v.dtype).reshape(-1, *(1,) * (v.dim() - 1))
    if mask is not None:
        gy, gl = (torch.where(mask, torch.zeros_like(g), g) for g in (gy, gl))
    slope, log_slope_t = _by_position(t, b)
    slope = torch.where(outside, grid.slope if form.tails == "affine" else torch.ones_like(slope), slope)
    log_slope_x = torch.where(outside, torch.zeros_like(t), log_slope_t / b.width)
    if form.tails is None:
        slope = torch.where(outside, torch.full_like(slope, math.nan), slope)
    if inverse:
        grad = (gy - gl * log_slope_x) / slope
        gy, gl = -grad, -gl
    else:
        grad = gy * slope + gl * log_slope_x
    grad_view = _parameters_backward(gy, gl, v, t, b, outside, parts, grid, form)
    grad = grad.to(saved.dtype)
    if mask is not None:
        grad = torch.where(mask, grad_active, grad)
        grad_view = torch.where(mask[..., None], torch.zeros_like(grad_view), grad_view)
    grad = merge_passive(kept, grad, passive) if passive else grad
    return grad, _join_raw(grad_view, form).to(raw.dtype), None


def _by_position(t: Tensor, b: Bin) -> tuple[Tensor, Tensor]:
    """dy/dx, and the derivative of its logarithm by t."""
    value = _evaluate(t, b)
    m_t = 2 * (b.last * t + value.slope * (1 - 2 * t) - b.first * (1 - t))
    q_t = (b.first + b.last - 2 * value.slope) * (1 - 2 * t)
    return value.m * (value.slope / value.q) ** 2, m_t / value.m - 2 * q_t / value.q


def _bin_backward(gy: Tensor, gl: Tensor, t: Tensor, b: Bin) -> Bin:
    """Gradients of what makes a bin."""
    value, (slope, log_slope_t) = _evaluate(t, b), _by_position(t, b)
    p, s, q, m = t * (1 - t), value.slope, value.q, value.m
    of_t = gy * slope * b.width + gl * log_slope_t
    of_s = gy * b.height * p * (b.last * t**2 - b.first * (1 - t) ** 2) / q**2
    of_s = of_s + 2 * gl * p * (1 / m + (b.first + b.last) / (s * q))
    by_end = gy * b.height * p / q**2
    return Bin(
        b.number,
        -of_t / b.width,
        -(of_t * t + of_s * s) / b.width,
        gy,
        gy * value.share + of_s / b.width,
        by_end * (s * (1 - t) ** 2 + b.last * p) + gl * ((1 - t) ** 2 / m - 2 * p / q),
        -by_end * (s * t**2 + b.first * p) + gl * (t**2 / m - 2 * p / q),
    )


def _parameters_backward(
    gy: Tensor, gl: Tensor, v: Tensor, t: Tensor, b: Bin, outside: Tensor, raw: Raw, grid: Grid, form: SplineForm
) -> Tensor:
    """The gradient of the view of raw numbers."""
    found = _bin_backward(gy, gl, t, b)
    inside = Bin(b.number, *(torch.where(outside, torch.zeros_like(g), g) for g in found[1:]))
    numbers = torch.arange(form.bins, device=t.device)
    before, at = numbers < b.number, numbers == b.number
    of_widths = before * inside.x[..., None] + at * inside.width[..., None]
    of_heights = before * inside.y[..., None] + at * inside.height[..., None]
    zero = torch.zeros_like(t)[..., None]
    of_knots = torch.cat((at * inside.first[..., None], zero), -1) + torch.cat((zero, at * inside.last[..., None]), -1)
    origin: list[Tensor] = []
    if raw.left is not None:
        of_slope = of_knots[..., 0] + of_knots[..., -1]
        of_slope = of_slope + torch.where(outside, gy * (v - grid.left) + gl / grid.slope, torch.zeros_like(t))
        by_total = (of_slope / grid.widths.sum(-1))[..., None]
        of_widths = of_widths - by_total * grid.slope[..., None]
        of_heights = of_heights + by_total
        origin = [gy[..., None], torch.where(outside, -gy * grid.slope, inside.x)[..., None]]
    left, right, bottom, top = form.extent
    shifts = size_shifts(form)
    if form.tails == "circular":
        of_knots = torch.cat((of_knots[..., :1] + of_knots[..., -1:], of_knots[..., 1:-1]), -1)
    elif form.tails is not None:
        of_knots = of_knots[..., 1:-1]
    return torch.cat(
        (
            _sizes_backward(of_widths, raw.widths, right - left, form.min_width, shifts[0], form),
            _sizes_backward(of_heights, raw.heights, top - bottom, form.min_height, shifts[1], form),
            *origin,
            of_knots * _derivative_slope(raw.derivatives, form),
        ),
        -1,
    )
