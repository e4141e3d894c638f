"""Planar flows in Triton: the formulas of a layer, which are those of csrc/flow/planar.h, for triton_stack."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from .. import triton_math as tm
from .. import triton_stack
from ..triton_stack import dot, load_number, load_vector, stack_backward, stack_finish, stack_forward
from . import reference


@triton.jit
def _constrained(u, w):
    """û and p, which is kept from underflowing to a determinant of 0."""
    least: tl.constexpr = 2.2250738585072014e-308 if u.dtype == tl.float64 else 1.17549435e-38
    s, square = dot(u, w), dot(w, w)
    flat = square == 0.0
    softplus = tm.softplus(s)
    p = tl.where(softplus < least, least, softplus)
    corrected = u + tl.where(flat, 0.0, tm.divide(tm.softplus(-s) - 1.0, square)) * w
    # Where u is large and against w, the factor alone does not give w'û to the last bit.
    rest = tl.where(flat, 0.0, tm.divide((p - 1.0) - dot(corrected, w), square))
    return corrected + rest * w, tl.where(flat, 1.0, p)


@triton.jit
def _layer(parameters, row, live, column, k, K: tl.constexpr):
    """û, w, b and p."""
    u_ptr, w_ptr, b_ptr, p_ptr, strides = parameters
    u = load_vector(u_ptr, strides[0], row, live, column, k, K)
    w = load_vector(w_ptr, strides[1], row, live, column, k, K)
    b = load_number(b_ptr, strides[2], row, live, k, K)
    if p_ptr is None:
        # For all rows of the tile, although they share it: so the sums need no exchange between warps.
        shape: tl.constexpr = (K.tile.rows, K.tile.columns)
        corrected, p = _constrained(tl.broadcast_to(u, shape), tl.broadcast_to(w, shape))
    else:
        corrected = u
        p = load_number(p_ptr, 0, row, live, k, K)
    return corrected, w, b, p


@triton.jit
def _point(a, K: tl.constexpr):
    """h(a), h'(a) and 1 - h'(a)."""
    if K.options[0] == "leaky_relu":
        slope = tl.where(a > 0.0, 1.0, tl.full(a.shape, K.options[1], a.dtype))
        return slope * a, slope, 1.0 - slope
    else:
        h, slope = tm.tanh_sech2(a)
        return h, slope, h * h


@triton.jit
def _without_tanh(a, tanh):
    """a - tanh a, which the difference itself would not know near 0."""
    square = a * a
    if a.dtype == tl.float64:
        series = square * (-18888466084 / 194896477400625) + 443861162 / 1856156927625
        series = series * square - 6404582 / 10854718875
        series = series * square + 929569 / 638512875
        series = series * square - 21844 / 6081075
        series = series * square + 1382 / 155925
    else:
        series = tl.full(a.shape, 1382 / 155925, a.dtype)
    series = series * square - 62 / 2835
    series = series * square + 17 / 315
    series = series * square - 2 / 15
    series = series * square + 1 / 3
    return tl.where(tl.abs(a) < 0.25, a * square * series, a - tanh)


@triton.jit
def _start(c, p):
    """A bound of the root for c >= 0 from the side on which Newton's steps stay: below it where p > 1, else above."""
    linear = tm.divide(c, p)
    shifted = c - (p - 1.0)
    below = tl.where(linear < shifted, shifted, linear)
    above = tl.where(shifted < linear, shifted, linear)
    cubic = tm.exp(tm.log(5.01 * c) * (1 / 3))  # a - tanh a > a³ / 5 for a < 1
    above = tl.where((cubic < 1.0) & ((above < cubic) == 0), cubic, above)
    return tl.where(p > 1.0, below, above)


@triton.jit
def _solve(c, p, K: tl.constexpr):
    """The root a of a + (p - 1) h(a) = c.

    For tanh Newton's steps go one way, and a row has its root when rounding alone would turn them: further steps, which
    other rows of the tile may need, change nothing.
    """
    if K.options[0] == "leaky_relu":
        slope = tl.full(c.shape, K.options[1], c.dtype)
        return tm.divide(c, tl.where(c > 0.0, p, (1.0 - slope) + slope * p))
    else:
        magnitude = tl.abs(c)
        p = tl.broadcast_to(p, c.shape)
        a = _start(magnitude, p)
        left = 64
        while left > 0:
            h, slope = tm.tanh_sech2(a)
            step = tm.divide(magnitude - (_without_tanh(a, h) + p * h), h * h + slope * p)
            moved = a + step
            moves = (moved != a) & tl.where(p > 1.0, step > 0.0, step < 0.0)
            a = tl.where(moves, moved, a)
            left = tl.where(tl.max(moves.to(tl.int32)) > 0, left - 1, 0)
        return tl.where(c < 0.0, -a, a)


@triton.jit
def _apply(z, layer, K: tl.constexpr):
    corrected, w, b, p = layer
    h, slope, rest = _point(dot(z, w) + b, K)
    return z + corrected * h, None, rest + slope * p


@triton.jit
def _undo(z, layer, K: tl.constexpr):
    corrected, w, b, p = layer
    h, slope, rest = _point(_solve(dot(z, w) + b, p, K), K)
    return z - corrected * h, None, rest + slope * p


@triton.jit
def _backward(z, g, grad_log_det, layer, K: tl.constexpr):
    """The gradients are those of û, w, log p and b."""
    corrected, w, b, p = layer
    h, slope, rest = _point(dot(z, w) + b, K)
    reciprocal = tm.reciprocal(rest + slope * p)
    ratio = slope * reciprocal
    along = dot(g, corrected) * slope
    if K.options[0] == "tanh":
        along += grad_log_det * (-2.0 * h * (p - 1.0) * ratio)
    of_log_p = grad_log_det * ratio * p
    y = z + corrected * h
    if K.inverse:
        along = -along * reciprocal
        return y, g + along * w, (-h * g, along * y, -h * along * p - of_log_p, along)
    else:
        return y, g + along * w, (h * g, along * z, of_log_p, along)


@triton.jit
def _finish(gradients, parameters, row, live, column, k, K: tl.constexpr):
    """How the gradients of û and log p reach u and w."""
    of_corrected, of_w, of_log_p, of_b = gradients
    u_ptr, w_ptr, _, _, strides = parameters
    u = load_vector(u_ptr, strides[0], row, live, column, k, K)
    w = load_vector(w_ptr, strides[1], row, live, column, k, K)
    s, square = dot(u, w), dot(w, w)
    flat = square == 0.0
    factor = tl.where(flat, 0.0, tm.divide(tm.softplus(-s) - 1.0, square))
    along = tl.where(flat, 0.0, tm.divide(dot(of_corrected, w), square))
    slope = tl.where(s < -40.0, 1.0, tm.divide(tm.sigmoid(s), tm.softplus(s)))  # of log p
    of_s = tl.where(flat, 0.0, of_log_p * slope - along * tm.sigmoid(-s))
    return of_corrected + of_s * w, factor * (of_corrected - 2.0 * along * w) + of_s * u + of_w, of_b


@triton.jit
def planar_prepare_kernel(u_ptr, w_ptr, corrected_ptr, p_ptr, K: tl.constexpr):
    k = tl.program_id(0)
    column = tl.arange(0, K.tile.columns)[None, :]
    u = load_vector(u_ptr, 0, 0, True, column, k, K)
    w = load_vector(w_ptr, 0, 0, True, column, k, K)
    corrected, p = _constrained(u, w)
    tl.store(corrected_ptr + (k * K.features + column), corrected, column < K.features)
    tl.store(p_ptr + k + tl.zeros((1, 1), tl.int32), p)


@triton.jit(do_not_specialize=["rows", "depth"])
def planar_forward_kernel(
    x_ptr, u_ptr, w_ptr, b_ptr, p_ptr, y_ptr, log_det_ptr, rows, depth, strides, x_strides, K: tl.constexpr
):
    parameters = (u_ptr, w_ptr, b_ptr, p_ptr, strides)
    stack_forward(x_ptr, parameters, y_ptr, log_det_ptr, rows, depth, x_strides, K, _layer, _apply, _undo)


@triton.jit(do_not_specialize=["rows", "depth", "segment", "tiles", "grad_log_det_stride"])
def planar_backward_kernel(
    grad_y_ptr, grad_log_det_ptr, saved_ptr, u_ptr, w_ptr, b_ptr, p_ptr, grad_x_ptr, grad_u_ptr, grad_w_ptr, grad_b_ptr,
    vectors_ptr, numbers_ptr, kept_ptr, rows, depth, segment, tiles, strides, saved_strides, grad_y_strides,
    grad_log_det_stride, K: tl.constexpr,
):  # fmt: skip
    stack_backward(
        grad_y_ptr, grad_log_det_ptr, saved_ptr, (u_ptr, w_ptr, b_ptr, p_ptr, strides), grad_x_ptr,
        (grad_u_ptr, grad_w_ptr, grad_b_ptr), (vectors_ptr, numbers_ptr), kept_ptr, rows, depth, segment, tiles,
        saved_strides, grad_y_strides, grad_log_det_stride, K, _layer, _apply, _backward, _finish,
    )  # fmt: skip


@triton.jit(do_not_specialize=["programs", "depth"])
def planar_finish_kernel(
    vectors_ptr, numbers_ptr, u_ptr, w_ptr, b_ptr, grad_u_ptr, grad_w_ptr, grad_b_ptr, programs, depth,
    BLOCK: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    parameters = (u_ptr, w_ptr, b_ptr, None, (0, 0, 0))
    grads = (grad_u_ptr, grad_w_ptr, grad_b_ptr)
    stack_finish((vectors_ptr, numbers_ptr), parameters, grads, programs, depth, K, BLOCK, _finish)


_OP = triton_stack.Op(
    2, planar_forward_kernel, planar_backward_kernel, planar_finish_kernel, planar_prepare_kernel, reference
)
PlanarForward = functools.partial(triton_stack.Forward, _OP)
PlanarBackward = functools.partial(triton_stack.Backward, _OP)
