"""Radial flows in Triton: the formulas of a layer, which are those of csrc/flow/radial.h, for triton_stack."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from .. import triton_math as tm
from .. import triton_stack
from ..triton_stack import dot, load_number, load_vector, stack_backward, stack_finish, stack_forward
from . import reference


@triton.jit
def _layer(parameters, row, live, column, k, K: tl.constexpr):
    """z0, alpha, which is NaN unless positive, and p."""
    center_ptr, alpha_ptr, beta_ptr, _, strides = parameters
    center = load_vector(center_ptr, strides[0], row, live, column, k, K)
    alpha = load_number(alpha_ptr, strides[1], row, live, k, K)
    beta = load_number(beta_ptr, strides[2], row, live, k, K)
    return center, tl.where(alpha > 0.0, alpha, float("nan")), tm.softplus(beta)


@triton.jit
def _growth(r, alpha, p):
    """1 / (alpha + r), m and q. Quotients are formed before their product, which could overflow."""
    t = tm.reciprocal(alpha + r)
    return t, (r + p) * t, (r * t) * ((r + 2.0 * alpha) * t) + (alpha * t) * (p * t)


@triton.jit
def _radius(rho, alpha, p):
    """The root r >= 0 of m r = rho: r² + (p - rho) r - alpha rho = 0, without cancellation."""
    half = p - rho
    root = tm.sqrt(half * half + 4.0 * alpha * rho)
    return tl.where(half > 0.0, tm.divide(2.0 * alpha * rho, half + root), 0.5 * (root - half))


@triton.jit
def _apply(z, layer, K: tl.constexpr):
    center, alpha, p = layer
    v = z - center
    _, m, q = _growth(tm.sqrt(dot(v, v)), alpha, p)
    return center + m * v, m, q


@triton.jit
def _undo(z, layer, K: tl.constexpr):
    center, alpha, p = layer
    v = z - center
    _, m, q = _growth(_radius(tm.sqrt(dot(v, v)), alpha, p), alpha, p)
    return center + tm.reciprocal(m) * v, m, q


@triton.jit
def _backward(z, g, grad_log_det, layer, K: tl.constexpr):
    """The gradients are those of z0, alpha and p."""
    center, alpha, p = layer
    v = z - center
    r = tm.sqrt(dot(v, v))
    t, m, q = _growth(r, alpha, p)
    per_m, per_q = tm.reciprocal(m), tm.reciprocal(q)
    of_m = dot(g, v) + (K.features - 1) * grad_log_det * (1.0 if K.inverse else per_m)
    of_q = grad_log_det * per_q
    if K.inverse:
        of_m = -of_m * per_m
        of_q = -of_q
    m_r = (alpha - p) * t * t
    of_r = of_m * m_r + of_q * (2.0 * (alpha * t)) * m_r
    if K.inverse:  # r follows from rho = m r
        of_r = of_r * per_q
        of_m = of_m - of_r * r
        scale = per_m
        shrink = tm.divide(p - alpha, r + p)
    else:
        scale = m
        shrink = (alpha - p) * t
    q_alpha = ((r * t) * ((p - 2.0 * alpha) * t) - (alpha * t) * (p * t)) * t
    of_alpha = of_q * q_alpha - of_m * (m * t)
    of_p = (of_m + of_q * (alpha * t)) * t
    outward = tl.where(r > 0.0, tm.divide(of_r, r), 0.0) * v
    return center + m * v, scale * g + outward, (shrink * g - outward, None, of_alpha, of_p)


@triton.jit
def _finish(gradients, parameters, row, live, column, k, K: tl.constexpr):
    """The gradient of p reaches beta."""
    beta = load_number(parameters[2], parameters[4][2], row, live, k, K)
    return gradients[0], gradients[2], gradients[3] * tm.sigmoid(beta)


@triton.jit(do_not_specialize=["rows", "depth"])
def radial_forward_kernel(
    x_ptr, center_ptr, alpha_ptr, beta_ptr, extra_ptr, y_ptr, log_det_ptr, rows, depth, strides, x_strides,
    K: tl.constexpr,
):  # fmt: skip
    parameters = (center_ptr, alpha_ptr, beta_ptr, extra_ptr, strides)
    stack_forward(x_ptr, parameters, y_ptr, log_det_ptr, rows, depth, x_strides, K, _layer, _apply, _undo)


@triton.jit(do_not_specialize=["rows", "depth", "segment", "tiles", "grad_log_det_stride"])
def radial_backward_kernel(
    grad_y_ptr, grad_log_det_ptr, saved_ptr, center_ptr, alpha_ptr, beta_ptr, extra_ptr, grad_x_ptr, grad_center_ptr,
    grad_alpha_ptr, grad_beta_ptr, vectors_ptr, numbers_ptr, kept_ptr, rows, depth, segment, tiles, strides,
    saved_strides, grad_y_strides, grad_log_det_stride, K: tl.constexpr,
):  # fmt: skip
    stack_backward(
        grad_y_ptr, grad_log_det_ptr, saved_ptr, (center_ptr, alpha_ptr, beta_ptr, extra_ptr, strides), grad_x_ptr,
        (grad_center_ptr, grad_alpha_ptr, grad_beta_ptr), (vectors_ptr, numbers_ptr), kept_ptr, rows, depth, segment,
        tiles, saved_strides, grad_y_strides, grad_log_det_stride, K, _layer, _apply, _backward, _finish,
    )  # fmt: skip


@triton.jit(do_not_specialize=["programs", "depth"])
def radial_finish_kernel(
    vectors_ptr, numbers_ptr, center_ptr, alpha_ptr, beta_ptr, grad_center_ptr, grad_alpha_ptr, grad_beta_ptr, programs,
    depth, BLOCK: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    parameters = (center_ptr, alpha_ptr, beta_ptr, None, (0, 0, 0))
    grads = (grad_center_ptr, grad_alpha_ptr, grad_beta_ptr)
    stack_finish((vectors_ptr, numbers_ptr), parameters, grads, programs, depth, K, BLOCK, _finish)


_OP = triton_stack.Op(1, radial_forward_kernel, radial_backward_kernel, radial_finish_kernel, None, reference)
RadialForward = functools.partial(triton_stack.Forward, _OP)
RadialBackward = functools.partial(triton_stack.Backward, _OP)
