"""Rational-quadratic splines in Triton: one launch each way, and one more where rows are summed over several programs.

How programs find their elements is told in ..triton_box. The numbers of an element's bins are the first dimension of a
tile (bins, rows, columns) and stay within a thread. Read from memory so they would not: where an element's parameters
are adjacent, neighbouring threads read neighbouring ones, and `_within_threads` has them exchanged once. The formulas
are those of csrc/flow/rational_quadratic_spline.h.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import triton_box
from .. import triton_math as tm
from ..cost import CHUNK, LONGEST_ROW
from ..triton_box import Tile, View, at, column_numbers, load_passive, masked, row_numbers, store_passive
from ..triton_launch import Kernel, cdiv, power_of_two
from .form import DERIVATIVES, NORMALIZATIONS, TAILS

_IN_A_THREAD = 16  # bins


class Parameters(NamedTuple):
    """Where the raw numbers, or their gradients, lie."""

    first: View  # of each element
    step: object  # from one number of an element to the next


class ForwardViews(NamedTuple):
    x: View
    raw: Parameters
    mask: View | None
    y: View
    x_passive: View
    y_passive: View


class BackwardViews(NamedTuple):
    grad_y: View
    saved: View
    raw: Parameters
    mask: View | None
    grad_x: View
    grad_raw: Parameters
    grad_y_passive: View
    grad_x_passive: View
    grad_log_det_stride: object


class Axis(NamedTuple):
    """One of the two axes. Bin k begins at begin + k least + scale (sum of e before k) / (sum of e), where sizes are
    normalised, else at begin + (a raw number) + (sum of sizes before k)."""

    begin: float
    end: float
    least: float
    scale: float
    least_size: float  # where sizes are not normalised
    shift: float
    number: int  # of the first size among an element's parameters
    origin: int  # of the raw begin


class Form(NamedTuple):
    """What a kernel has to know of a SplineForm. The numbers are constants of the kernel: as arguments they would be
    float32 in a float64 kernel."""

    x: Axis
    y: Axis
    bins: int
    padded: int
    normalization: str
    derivative: str
    tails: str
    left_side: bool
    logit_scale: float
    inverse_width_clip: float
    inverse_derivative_clip: float
    min_derivative: float
    derivative_shift: float
    end_derivative: float
    first_derivative: int
    derivatives: int
    padded_derivatives: int


class Constants(NamedTuple):
    """What a kernel is compiled for, besides dtypes and strides."""

    form: Form
    inverse: bool
    tile: Tile
    active: tuple[int, int, int]
    passive: tuple[int, int, int]
    wide: bool  # whether offsets inside a row need 64 bits
    adjacent: bool  # whether the raw numbers of an element are


@triton.jit
def _within_threads(t, K: tl.constexpr):
    """A tile whose first dimension lies within threads, as that of tiles does which were not read from memory: split
    in two and put together again, for there is no other way to have Triton give up the order in which it reads. As
    other numbers in between, lest it see that nothing happens.

    It gives it up where the two are in different threads: the halves, if neighbouring threads read adjacent numbers,
    or else even and odd ones, for it may be warps that the tile was divided among.
    """
    if t.shape[0] == 1:
        return t
    else:
        half: tl.constexpr = t.shape[0] // 2
        size: tl.constexpr = (2, half) if K.adjacent else (half, 2)
        apart: tl.constexpr = (1, 2, 3, 0) if K.adjacent else (0, 2, 3, 1)
        back: tl.constexpr = (3, 0, 1, 2) if K.adjacent else (0, 3, 1, 2)
        bits: tl.constexpr = tl.int64 if t.dtype == tl.float64 else tl.int32
        a, b = tl.split(tl.permute(tl.reshape(t, (size[0], size[1], t.shape[1], t.shape[2])), apart))
        joined = tl.join(a.to(bits, bitcast=True), b.to(bits, bitcast=True))
        return tl.reshape(tl.permute(joined, back), t.shape).to(t.dtype, bitcast=True)


@triton.jit
def _numbers(COUNT: tl.constexpr, K: tl.constexpr):
    """0, 1, ... along the first dimension."""
    number = tl.arange(0, COUNT)[:, None, None]
    if K.wide:
        number = number.to(tl.int64)
    return number


@triton.jit
def _load_parameters(
    elements, step, ok, FIRST: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, DTYPE: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    k = _numbers(PADDED, K)
    raw = tl.load(elements[None, :, :] + (FIRST + k) * step, ok[None, :, :] & (k < COUNT), other=0.0)
    return _within_threads(raw.to(DTYPE), K)


@triton.jit
def _store_parameters(
    elements, step, value, ok, FIRST: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, K: tl.constexpr
):
    k = _numbers(PADDED, K)
    value = value.to(elements.dtype.element_ty)
    tl.store(elements[None, :, :] + (FIRST + k) * step, value, ok[None, :, :] & (k < COUNT))


@triton.jit
def _softclip(v, INVERSE_BOUND: tl.constexpr):
    return tm.divide(v, 1.0 + tl.abs(v) * INVERSE_BOUND)


@triton.jit
def _softclip_slope(v, INVERSE_BOUND: tl.constexpr):
    r = tm.reciprocal(1.0 + tl.abs(v) * INVERSE_BOUND)
    return r * r


@triton.jit
def _knot_derivative(raw, FORM: tl.constexpr):
    """The derivative of the spline at a knot from its raw number."""
    if FORM.derivative == "exp_softclip":
        return tm.exp(_softclip(raw, FORM.inverse_derivative_clip))
    else:
        return FORM.min_derivative + tm.softplus(raw + FORM.derivative_shift)


@triton.jit
def _knot_derivative_slope(raw, FORM: tl.constexpr):
    if FORM.derivative == "exp_softclip":
        clip: tl.constexpr = FORM.inverse_derivative_clip
        return tm.exp(_softclip(raw, clip)) * _softclip_slope(raw, clip)
    else:
        return tm.sigmoid(raw + FORM.derivative_shift)


@triton.jit
def _sizes(raw, AXIS: tl.constexpr, K: tl.constexpr):
    """e = exp(logit - max) of each bin, or its size where sizes are not normalised, and their sum."""
    form: tl.constexpr = K.form
    real = _numbers(form.padded, K) < form.bins
    if form.normalization == "softplus":
        e = tl.where(real, AXIS.least_size + tm.softplus(raw + AXIS.shift), 0.0)
    else:
        logit = raw * form.logit_scale
        if form.normalization == "softclip":
            logit = _softclip(raw, form.inverse_width_clip)
        most = tl.max(tl.where(real, logit, float("-inf")), 0)
        e = tl.where(real, tm.exp(logit - most[None, :, :]), 0.0)
    return e, tl.sum(e, 0)


@triton.jit
def _axis(elements, step, ok, AXIS: tl.constexpr, DTYPE: tl.constexpr, K: tl.constexpr):
    """An axis of each element: raw sizes, e, their sum, size per e, and where the first bin begins."""
    form: tl.constexpr = K.form
    raw = _load_parameters(elements, step, ok, AXIS.number, form.bins, form.padded, DTYPE, K)
    e, total = _sizes(raw, AXIS, K)
    if form.normalization == "softplus":
        origin = AXIS.begin + tl.load(elements + AXIS.origin * step, ok, other=0.0).to(DTYPE)
        return raw, e, total, tl.full(total.shape, 1.0, DTYPE), origin
    else:
        return raw, e, total, AXIS.scale * tm.reciprocal(total), tl.full(total.shape, AXIS.begin, DTYPE)


@triton.jit
def _find(value, axis, AXIS: tl.constexpr, K: tl.constexpr):
    """The number of each value's bin along an axis, and which values lie outside of the box."""
    form: tl.constexpr = K.form
    _, e, total, scale, origin = axis
    k = _numbers(form.padded, K)
    ends = origin[None, :, :] + (k + 1).to(e.dtype) * AXIS.least + tl.cumsum(e, 0) * scale[None, :, :]
    end = origin + total if form.normalization == "softplus" else tl.full(total.shape, AXIS.end, total.dtype)
    if form.left_side:
        passed = value[None, :, :] > ends
        outside = (value <= origin) | (value > end)
    else:
        passed = value[None, :, :] >= ends
        outside = (value < origin) | (value > end)
    return tl.sum((passed & (k < form.bins - 1)).to(tl.int32), 0), outside


@triton.jit
def _side(number, axis, AXIS: tl.constexpr, K: tl.constexpr):
    """Where a bin begins and its size, with the sum of e before it and its own."""
    _, e, _, scale, origin = axis
    k = _numbers(K.form.padded, K)
    before = tl.sum(tl.where(k < number[None, :, :], e, 0.0), 0)
    own = tl.sum(tl.where(k == number[None, :, :], e, 0.0), 0)
    return origin + number.to(e.dtype) * AXIS.least + before * scale, AXIS.least + own * scale, before, own


@triton.jit
def _knots(number, K: tl.constexpr):
    """The numbers among the derivatives of the knots at a bin's ends, and whether they have parameters."""
    form: tl.constexpr = K.form
    always = number >= 0
    if form.tails == "circular":
        return number, always, tl.where(number == form.bins - 1, 0, number + 1), always
    elif form.tails == "none":
        return number, always, number + 1, always
    else:
        return number - 1, number > 0, number, number < form.bins - 1


@triton.jit
def _diagonal(x_axis, y_axis, K: tl.constexpr):
    """The slope outside of the box."""
    if K.form.normalization == "softplus":
        return tm.divide(y_axis[2], x_axis[2])
    else:
        return tl.full(x_axis[2].shape, K.form.end_derivative, x_axis[2].dtype)


@triton.jit
def _end(elements, step, number, has, ok, diagonal, K: tl.constexpr):
    """The derivative at an end of a bin, and its raw number."""
    form: tl.constexpr = K.form
    if K.wide:
        number = number.to(tl.int64)
    raw = tl.load(elements + (form.first_derivative + number) * step, ok & has, other=0.0).to(diagonal.dtype)
    return tl.where(has, _knot_derivative(raw, form), diagonal), raw


# A bin is (x, width, y, height, first, last): its lower left corner, its size, and the derivatives at its ends.


@triton.jit
def _value(t, bin):
    """(share, slope, q, m) at position t of a bin, with y = b.y + b.height * share and dy/dx = (slope / q)^2 m. All
    are sums of positive terms."""
    _, width, _, height, first, last = bin
    u = 1.0 - t
    p = t * u
    s = tm.divide(height, width)
    q = s * (1.0 - 2.0 * p) + (first + last) * p
    m = last * (t * t) + 2.0 * s * p + first * (u * u)
    return tm.divide(s * (t * t) + first * p, q), s, q, m


@triton.jit
def _unit(t):
    """t within [0, 1]; NaN stays."""
    above = tl.where(t < 0.0, 0.0, t)
    return tl.where(above > 1.0, 1.0, above)


@triton.jit
def _root(v, bin):
    """The position where y = b.y + b.height * v."""
    _, width, _, height, first, last = bin
    s = tm.divide(height, width)
    w = 1.0 - v
    e = first * w - last * v
    rest = 4.0 * s * s * (v * w)
    sum = tm.sqrt(e * e + rest) + tl.abs(e)
    part = 2.0 * s * v
    return tm.divide(part, part + tl.where(e < 0.0, tm.divide(rest, sum), sum))


@triton.jit
def _inside(value, bin, INVERSE: tl.constexpr):
    """y and log dy/dx of a point inside of the box, or those of the inverse."""
    x, width, y, height, _, _ = bin
    t = _root(_unit(tm.divide(value - y, height)), bin) if INVERSE else _unit(tm.divide(value - x, width))
    share, slope, q, m = _value(t, bin)
    ratio = tm.divide(slope, q)
    log_slope = tm.log(m * (ratio * ratio))
    if INVERSE:
        return x + width * t, -log_slope
    else:
        return y + height * share, log_slope


@triton.jit
def _tail(value, left, bottom, slope, K: tl.constexpr):
    """y and log dy/dx of a point outside of the box, or those of the inverse."""
    if K.form.tails == "none":
        nan = tl.full(value.shape, float("nan"), value.dtype)
        return nan, nan
    elif K.form.tails == "affine":
        if K.inverse:
            return left + tm.divide(value - bottom, slope), -tm.log(slope)
        else:
            return bottom + (value - left) * slope, tm.log(slope)
    else:
        return value, tl.zeros_like(value)


@triton.jit
def _locate(value, elements, step, ok, INVERSE: tl.constexpr, K: tl.constexpr):
    """The bin of each value: both axes; its number, whether the value lies outside of the box, and the slope there; the
    bin; the sums of e before and in it along x and along y; the numbers of its knots' derivatives, and these raw."""
    x_form: tl.constexpr = K.form.x
    y_form: tl.constexpr = K.form.y
    x_axis = _axis(elements, step, ok, x_form, value.dtype, K)
    y_axis = _axis(elements, step, ok, y_form, value.dtype, K)
    if INVERSE:
        number, outside = _find(value, y_axis, y_form, K)
    else:
        number, outside = _find(value, x_axis, x_form, K)
    x, width, before_x, own_x = _side(number, x_axis, x_form, K)
    y, height, before_y, own_y = _side(number, y_axis, y_form, K)
    diagonal = _diagonal(x_axis, y_axis, K)
    first_number, has_first, last_number, has_last = _knots(number, K)
    first, raw_first = _end(elements, step, first_number, has_first, ok, diagonal, K)
    last, raw_last = _end(elements, step, last_number, has_last, ok, diagonal, K)
    return (
        (x_axis, y_axis),
        (number, outside, diagonal),
        (x, width, y, height, first, last),
        ((before_x, own_x), (before_y, own_y)),
        (first_number, raw_first, last_number, raw_last),
    )


@triton.jit
def _evaluate(value, elements, step, ok, K: tl.constexpr):
    """The spline, or its inverse, and the logarithm of its derivative."""
    axes, place, bin, _, _ = _locate(value, elements, step, ok, K.inverse, K)
    _, outside, diagonal = place
    result, log_slope = _inside(value, bin, K.inverse)
    tail, tail_log = _tail(value, axes[0][4], axes[1][4], diagonal, K)
    return tl.where(outside, tail, result), tl.where(outside, tail_log, log_slope)


@triton.jit(do_not_specialize=["rows"])
def rational_quadratic_spline_forward_kernel(
    x_ptr,
    raw_ptr,
    mask_ptr,
    y_ptr,
    log_det_ptr,  # one value per row and chunk
    rows,
    views,
    K: tl.constexpr,
):
    dtype: tl.constexpr = log_det_ptr.dtype.element_ty
    tile: tl.constexpr = K.tile
    size: tl.constexpr = K.active
    active: tl.constexpr = K.active[0] * K.active[1] * K.active[2]
    tile_shape: tl.constexpr = (tile.rows, tile.columns)
    chunk = tl.program_id(0) % tile.chunks
    row = row_numbers(tl.program_id(0) // tile.chunks, K)
    live = row < rows
    total = tl.zeros(tile_shape, dtype)
    for step in range(tile.steps):
        column = column_numbers(chunk, step, tile.columns, K)
        inside = column < active
        ok = live & inside
        counted = ok
        beside = load_passive(x_ptr, views.x_passive, row, live, chunk, step, x_ptr.dtype.element_ty, K)
        kept = tl.load(at(x_ptr, views.x, row, column, size), ok)
        if mask_ptr is not None:
            skipped = masked(mask_ptr, views.mask, column, inside, K)
            counted = ok & (skipped == 0)
        elements = at(raw_ptr, views.raw.first, row, column, size)
        value, log_slope = _evaluate(kept.to(dtype), elements, views.raw.step, counted, K)
        value = value.to(x_ptr.dtype.element_ty)
        if mask_ptr is not None:
            value = tl.where(skipped, kept, value)
        tl.store(at(y_ptr, views.y, row, column, size), value, ok)
        store_passive(y_ptr, views.y_passive, beside, row, live, chunk, step, K)
        total += tl.where(counted, log_slope, 0.0)
    tl.store(log_det_ptr + row * tile.chunks + chunk, tl.sum(total, 1)[:, None], live)


@triton.jit
def _slope(t, value, bin):
    """dy/dx, and the derivative of its logarithm by t."""
    _, _, _, _, first, last = bin
    _, s, q, m = value
    u = 1.0 - t
    ratio = tm.divide(s, q)
    m_t = 2.0 * (last * t + s * (u - t) - first * u)
    q_t = (first + last - 2.0 * s) * (u - t)
    return m * (ratio * ratio), tm.divide(m_t, m) - 2.0 * tm.divide(q_t, q)


@triton.jit
def _cotangents(grad_y, grad_log_det, slope, log_slope_x, INVERSE: tl.constexpr):
    """The gradient of what the call was given, and those of y and log dy/dx. For the inverse x(y, parameters),
    dx = (dy - f_parameters dparameters) / f_x: they are those of f for other gradients."""
    if INVERSE:
        grad = tm.divide(grad_y - grad_log_det * log_slope_x, slope)
        return grad, -grad, -grad_log_det
    else:
        return grad_y * slope + grad_log_det * log_slope_x, grad_y, grad_log_det


@triton.jit
def _bin_backward(grad_y, grad_log_slope, t, value, slope, log_slope_t, bin):
    """The gradients of a bin."""
    _, width, _, height, first, last = bin
    share, s, q, m = value
    u = 1.0 - t
    p = t * u
    inverse_q = tm.reciprocal(q)
    inverse_m = tm.reciprocal(m)
    inverse_width = tm.reciprocal(width)
    of_t = grad_y * slope * width + grad_log_slope * log_slope_t
    by_end = grad_y * height * p * (inverse_q * inverse_q)
    of_s = by_end * (last * (t * t) - first * (u * u))
    of_s += 2.0 * grad_log_slope * p * (inverse_m + tm.divide(first + last, s) * inverse_q)
    both = 2.0 * p * inverse_q
    return (
        -of_t * inverse_width,
        -(of_t * t + of_s * s) * inverse_width,
        grad_y,
        grad_y * share + of_s * inverse_width,
        by_end * (s * (u * u) + last * p) + grad_log_slope * (u * u * inverse_m - both),
        -by_end * (s * (t * t) + first * p) + grad_log_slope * (t * t * inverse_m - both),
    )


@triton.jit
def _differentiate(value, grad_y, grad_log_det, elements, step, ok, K: tl.constexpr):
    """The gradient of what the call was given, and what `_store_raw_gradients` needs beside it."""
    located = _locate(value, elements, step, ok, False, K)
    _, outside, diagonal = located[1]
    bin = located[2]
    t = _unit(tm.divide(value - bin[0], bin[1]))
    inner = _value(t, bin)
    slope, log_slope_t = _slope(t, inner, bin)
    beyond = tl.full(slope.shape, float("nan"), slope.dtype) if K.form.tails == "none" else diagonal
    log_slope_x = tl.where(outside, 0.0, tm.divide(log_slope_t, bin[1]))
    grad, of_y, of_log_slope = _cotangents(
        grad_y, grad_log_det, tl.where(outside, beyond, slope), log_slope_x, K.inverse
    )
    of_bin = _bin_backward(of_y, of_log_slope, t, inner, slope, log_slope_t, bin)
    return grad, of_y, of_log_slope, of_bin, located


@triton.jit
def _store_sizes(
    targets, step, ok, number, sums, of_begin, of_size, of_every, axis, AXIS: tl.constexpr, K: tl.constexpr
):
    """Store the gradients of an axis' raw sizes, from those of where the bin begins, its size, and every size."""
    form: tl.constexpr = K.form
    raw, e, total, scale, _ = axis
    k = _numbers(form.padded, K)
    number = number[None, :, :]
    of_sizes = tl.where(k < number, of_begin[None, :, :], tl.where(k == number, of_size[None, :, :], 0.0))
    if form.normalization == "softplus":
        gradients = (of_sizes + of_every[None, :, :]) * tm.sigmoid(raw + AXIS.shift)
    else:
        mean = tm.divide(sums[0] * of_begin + sums[1] * of_size, total)
        gradients = e * scale[None, :, :] * (of_sizes - mean[None, :, :])
        if form.normalization == "softclip":
            gradients *= _softclip_slope(raw, form.inverse_width_clip)
        else:
            gradients *= form.logit_scale
    _store_parameters(targets, step, gradients, ok, AXIS.number, form.bins, form.padded, K)


@triton.jit
def _store_knots(targets, step, ok, knots, of_first, of_last, K: tl.constexpr):
    """Store the gradients of raw derivatives."""
    form: tl.constexpr = K.form
    first_number, raw_first, last_number, raw_last = knots
    if form.derivatives > 0:
        k = _numbers(form.padded_derivatives, K)
        of_first *= _knot_derivative_slope(raw_first, form)
        of_last *= _knot_derivative_slope(raw_last, form)
        gradients = tl.where(k == first_number[None, :, :], of_first[None, :, :], 0.0)
        gradients += tl.where(k == last_number[None, :, :], of_last[None, :, :], 0.0)
        count: tl.constexpr = form.derivatives
        _store_parameters(targets, step, gradients, ok, form.first_derivative, count, form.padded_derivatives, K)


@triton.jit
def _of_every_size(place, of_y, of_log_slope, value, of_first, of_last, x_axis, K: tl.constexpr):
    """The gradients of every width and of every height, by the box's diagonal, which is the ratio of their sums."""
    number, outside, diagonal = place
    at_ends = tl.where(number == 0, of_first, 0.0) + tl.where(number == K.form.bins - 1, of_last, 0.0)
    beyond = of_y * (value - x_axis[4]) + tm.divide(of_log_slope, diagonal)
    of_heights = tm.divide(tl.where(outside, beyond, at_ends), x_axis[2])
    return -of_heights * diagonal, of_heights


@triton.jit
def _store_raw_gradients(targets, step, ok, value, of_y, of_log_slope, of_bin, located, K: tl.constexpr):
    axes, place, _, sums, knots = located
    number, outside, diagonal = place
    of_x = tl.where(outside, 0.0, of_bin[0])
    of_width = tl.where(outside, 0.0, of_bin[1])
    of_bottom = tl.where(outside, 0.0, of_bin[2])
    of_height = tl.where(outside, 0.0, of_bin[3])
    of_first = tl.where(outside, 0.0, of_bin[4])
    of_last = tl.where(outside, 0.0, of_bin[5])
    of_widths = tl.zeros_like(of_y)
    of_heights = of_widths
    x_form: tl.constexpr = K.form.x
    y_form: tl.constexpr = K.form.y
    if K.form.normalization == "softplus":
        of_widths, of_heights = _of_every_size(place, of_y, of_log_slope, value, of_first, of_last, axes[0], K)
        tl.store(targets + x_form.origin * step, tl.where(outside, -of_y * diagonal, of_x), ok)
        tl.store(targets + y_form.origin * step, of_y, ok)
    _store_sizes(targets, step, ok, number, sums[0], of_x, of_width, of_widths, axes[0], x_form, K)
    _store_sizes(targets, step, ok, number, sums[1], of_bottom, of_height, of_heights, axes[1], y_form, K)
    _store_knots(targets, step, ok, knots, of_first, of_last, K)


@triton.jit(do_not_specialize=["rows"])
def rational_quadratic_spline_backward_kernel(
    grad_y_ptr,
    grad_log_det_ptr,
    saved_ptr,
    raw_ptr,
    mask_ptr,
    grad_x_ptr,
    grad_raw_ptr,
    rows,
    views,
    K: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if saved_ptr.dtype.element_ty == tl.float64 else tl.float32
    size: tl.constexpr = K.active
    chunk = tl.program_id(0) % K.tile.chunks
    row = row_numbers(tl.program_id(0) // K.tile.chunks, K)
    column = column_numbers(chunk, 0, K.tile.columns, K)
    live = row < rows
    inside = column < K.active[0] * K.active[1] * K.active[2]
    ok = live & inside
    counted = ok
    beside = load_passive(grad_y_ptr, views.grad_y_passive, row, live, chunk, 0, saved_ptr.dtype.element_ty, K)
    kept = tl.zeros(ok.shape, saved_ptr.dtype.element_ty)
    if grad_y_ptr is not None:
        kept = tl.load(at(grad_y_ptr, views.grad_y, row, column, size), ok)
    grad_y = kept.to(dtype)
    grad_log_det = tl.zeros(ok.shape, dtype)
    if grad_log_det_ptr is not None:
        grad_log_det += tl.load(grad_log_det_ptr + row * views.grad_log_det_stride, live).to(dtype)
    value = tl.load(at(saved_ptr, views.saved, row, column, size), ok).to(dtype)
    if mask_ptr is not None:  # an element that is kept has raw numbers 0 and gradients 0: its own may be NaN
        skipped = masked(mask_ptr, views.mask, column, inside, K)
        counted = ok & (skipped == 0)
        value = tl.where(skipped, 0.5 * (K.form.x.begin + K.form.x.end), value)
        grad_y = tl.where(skipped, 0.0, grad_y)
        grad_log_det = tl.where(skipped, 0.0, grad_log_det)
    elements = at(raw_ptr, views.raw.first, row, column, size)
    gradient, of_y, of_log_slope, of_bin, located = _differentiate(
        value, grad_y, grad_log_det, elements, views.raw.step, counted, K
    )
    if grad_x_ptr is not None:
        gradient = gradient.to(saved_ptr.dtype.element_ty)
        if mask_ptr is not None:
            gradient = tl.where(skipped, kept, gradient)
        tl.store(at(grad_x_ptr, views.grad_x, row, column, size), gradient, ok)
        store_passive(grad_x_ptr, views.grad_x_passive, beside, row, live, chunk, 0, K)
    if grad_raw_ptr is not None:
        targets = at(grad_raw_ptr, views.grad_raw.first, row, column, size)
        _store_raw_gradients(targets, views.grad_raw.step, ok, value, of_y, of_log_slope, of_bin, located, K)


def _form(plan: dict[str, Any]) -> Form:
    """`spline_constants` of csrc/flow/rational_quadratic_spline.h."""
    bins, normalization = plan["bins"], NORMALIZATIONS[plan["normalization"]]
    tails = str(TAILS[plan["tails"]]).lower()
    unnormalised = normalization == "softplus"
    width, height = plan["right"] - plan["left"], plan["top"] - plan["bottom"]

    def axis(begin: float, end: float, size: str, number: int, origin: int) -> Axis:
        least, extent = plan["min_" + size], end - begin
        normalised = (0.0, 1.0) if unnormalised else (extent * least, extent * (1 - bins * least))
        return Axis(begin, end, *normalised, least, plan[size + "_shift"], number, origin)

    derivatives = {"linear": bins - 1, "circular": bins, "affine": bins - 1, "none": bins + 1}[tails]
    return Form(
        x=axis(plan["left"], plan["right"], "width", 0, 2 * bins + 1),
        y=axis(plan["bottom"], plan["top"], "height", bins, 2 * bins),
        bins=bins,
        padded=power_of_two(bins),
        normalization=normalization,
        derivative=DERIVATIVES[plan["derivative"]],
        tails=tails,
        left_side=plan["left_side"],
        logit_scale=plan["logit_scale"],
        inverse_width_clip=1 / plan["width_clip"],
        inverse_derivative_clip=1 / plan["derivative_clip"],
        min_derivative=plan["min_derivative"],
        derivative_shift=plan["derivative_shift"],
        end_derivative=height / width if tails == "affine" else 1.0,
        first_derivative=2 * bins + 2 * unnormalised,
        derivatives=derivatives,
        padded_derivatives=power_of_two(derivatives),
    )


def _tile(active: int, passive: int, bins: int, whole_row: bool) -> Tile:
    """How rows of so many active and passive elements are cut, each active one with so many bins, a power of two.

    A thread has an element with all of its bins. Of more bins than `_IN_A_THREAD` it has a part, and a program is a
    warp, as sums over bins would else need barriers; if there are not too many for that.
    """
    width = max(active, passive, 1)
    warps = 4 if bins <= _IN_A_THREAD else max(1, bins // (32 * _IN_A_THREAD))
    elements = 32 * warps if bins <= _IN_A_THREAD else max(1, 32 * _IN_A_THREAD // bins)
    rows = max(1, elements // power_of_two(width))
    own, beside = (min(elements, power_of_two(n)) for n in (active, passive))
    steps = 1
    if whole_row:
        steps = cdiv(width if width <= LONGEST_ROW else CHUNK, elements)
    chunks = max(1, cdiv(active, steps * own), cdiv(passive, steps * beside))
    return Tile(rows, own, beside, steps, chunks, warps)


class _Plan:
    """The common part of a plan (SplinePlan), as the kernels want it."""

    def __init__(self, plan: dict[str, Any], whole_row: bool) -> None:
        self._plan = plan
        self.rows = plan["active"][0]
        active, passive = plan["active"][1:], plan["passive"][1:]
        form = _form(plan)
        self._parameters = form.first_derivative + form.derivatives
        self.tile = _tile(math.prod(active), math.prod(passive), form.padded, whole_row)
        self.programs = cdiv(self.rows, self.tile.rows) * self.tile.chunks
        self.constants = Constants(
            form, plan["inverse"], self.tile, tuple(active), tuple(passive), self._wide(), plan["raw_step"] == 1
        )

    def _strides(self, name: str) -> tuple[list[int], list[int]]:
        """Offset and strides of a tensor, and its extent: with that of an element's parameters where it has them."""
        size = self._plan["passive" if name.endswith("_passive") else "active"]
        if name + "_step" not in self._plan:
            return self._plan[name], size
        return [*self._plan[name], self._plan[name + "_step"]], [*size, self._parameters]

    def _wide(self) -> bool:
        """Whether an offset inside a row, or the number of a column past its end, may exceed 32 bits."""
        spans = [2 * math.prod(self._plan[n][1:]) for n in ("active", "passive")]
        names = {*ForwardViews._fields, *BackwardViews._fields} & self._plan.keys()
        return max(spans + [triton_box.span(*self._strides(n)) for n in names if n != "grad_log_det_stride"]) >= 2**31

    def view(self, name: str) -> View | Parameters | None:
        if name not in self._plan:
            return None
        numbers = triton_box.view_numbers(*self._strides(name))
        return View(*numbers) if len(numbers) == len(View._fields) else Parameters(View(*numbers[:-1]), numbers[-1])

    def kernel(self, kernel: Any, views: ForwardViews | BackwardViews) -> Kernel:
        return Kernel(kernel, self.programs, (self.rows, views, self.constants), self.tile.warps)


class SplineForward:
    """A forward plan; takes the tensors of SplineForwardCall, and log_det."""

    def __init__(self, **plan: Any) -> None:
        common = _Plan(plan, whole_row=True)
        views = ForwardViews._make(map(common.view, ForwardViews._fields))
        self.main = common.kernel(rational_quadratic_spline_forward_kernel, views)
        self.partials = (common.rows, common.tile.chunks) if common.tile.chunks > 1 else None
        self.finish = triton_box.sum_partials(1, common.rows, common.tile.chunks)

    def __call__(self, device: torch.device, *tensors: Tensor | None) -> None:
        if self.partials is None:
            self.main(device, *tensors)
            return
        *others, log_det = tensors
        assert log_det is not None
        partials = torch.empty(self.partials, dtype=log_det.dtype, device=device)
        self.main(device, *others, partials)
        self.finish(device, partials, log_det)


class SplineBackward:
    """A backward plan; takes the tensors of SplineBackwardCall."""

    def __init__(self, grad_log_det_stride: int, **plan: Any) -> None:
        common = _Plan(plan, whole_row=False)
        views = map(common.view, BackwardViews._fields[:-1])
        strides = BackwardViews(*views, tl.constexpr(grad_log_det_stride))
        self.main = common.kernel(rational_quadratic_spline_backward_kernel, strides)

    def __call__(self, device: torch.device, *tensors: Tensor | None) -> None:
        self.main(device, *tensors)
