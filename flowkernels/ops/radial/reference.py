"""The specification of radial flows, in plain PyTorch: Rezende and Mohamed, "Variational Inference with Normalizing
Flows" (2015), equations 13 and 14 and appendix A.2.

One layer is y = z0 + m (z - z0) with m = 1 + (p - alpha) / (alpha + r) = (r + p) / (alpha + r), r = |z - z0| and
p = softplus(beta) > 0. Its determinant is m^(D - 1) q with q = d(m r)/dr.

Forward and backward are both written out; the tests hold the second to what autograd makes of the first. Everything
is computed in float32, or float64 where x is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import accumulation_dtype
from ..stack import layers, softplus


def _length(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)  # whose gradient at 0 is 0


def _positive(alpha: Tensor) -> Tensor:
    return torch.where(alpha > 0, alpha, float("nan"))


def _growth(r: Tensor, alpha: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """m and q. Quotients are formed before their product, which could overflow."""
    t = alpha + r
    return (r + p) / t, (r / t) * ((r + 2 * alpha) / t) + (alpha / t) * (p / t)


def _radius(rho: Tensor, alpha: Tensor, p: Tensor) -> Tensor:
    """The root r >= 0 of m r = rho: r² + (p - rho) r - alpha rho = 0, without cancellation."""
    t = p - rho
    root = torch.sqrt(t * t + 4 * alpha * rho)
    falls = t > 0
    return torch.where(falls, 2 * alpha * rho / torch.where(falls, t + root, 1), (root - t) / 2)


def forward(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """y and log_det of the stack, or of its inverse."""
    z = x.to(accumulation_dtype(x.dtype))
    log_det = z.new_zeros(x.shape[0])
    alpha, p = _positive(alpha), softplus(beta)
    for k in layers(beta.shape[-1], inverse):
        v = z - center[..., k, :]
        r = _length(v)
        if inverse:
            r = _radius(r, alpha[..., k], p[..., k])
        m, q = _growth(r, alpha[..., k], p[..., k])
        change = (x.shape[1] - 1) * torch.log(m) + torch.log(q)
        z = center[..., k, :] + (v / m[:, None] if inverse else v * m[:, None])
        log_det = log_det - change if inverse else log_det + change
    return z.to(x.dtype, copy=beta.shape[-1] == 0), log_det


def saved(tensors: tuple, outputs: tuple, options: tuple) -> tuple[Tensor, ...]:
    """What backward reads. From the output of an inverse, every layer is found again without solving for it."""
    x, center, alpha, beta = tensors
    return (outputs[0] if options[-1] else x), center, alpha, beta


def _layer_backward(z, g, grad_log_det, center, alpha, p, inverse):
    """Gradients of one layer: of its input, of the centre, alpha and p for each row; and z0 + m (z - z0)."""
    v = z - center
    r, t = _length(v), alpha + _length(v)
    m, q = _growth(r, alpha, p)
    along, of_log_m, of_q = (g * v).sum(-1), grad_log_det * (z.shape[1] - 1), grad_log_det / q
    of_m = along + of_log_m / m
    if inverse:
        of_m, of_q = -(along + of_log_m) / m, -of_q
    q_r, q_p = 2 * (alpha / t) * ((alpha - p) / t) / t, (alpha / t) / t
    q_alpha = ((r / t) * ((p - 2 * alpha) / t) - (alpha / t) * (p / t)) / t
    m_r, m_p, m_alpha = ((alpha - p) / t) / t, 1 / t, -m / t
    of_r = of_m * m_r + of_q * q_r
    scale = m
    if inverse:  # by the implicit function theorem: r follows from rho = m r
        of_r, scale = of_r / q, 1 / m
        of_m = of_m - of_r * r
    of_p, of_alpha = of_m * m_p + of_q * q_p, of_m * m_alpha + of_q * q_alpha
    outward = torch.where(r > 0, of_r / torch.where(r > 0, r, 1), 0)[:, None] * v
    shrink = ((p - alpha) / (r + p) if inverse else (alpha - p) / t)[:, None]  # 1 - scale
    return scale[:, None] * g + outward, shrink * g - outward, of_alpha, of_p, center + m[:, None] * v


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    center: Tensor,
    alpha: Tensor,
    beta: Tensor,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, the centre, alpha and beta."""
    z = saved.to(accumulation_dtype(saved.dtype))
    g = torch.zeros_like(z) if grad_y is None else grad_y.to(z.dtype)
    grad_log_det = z.new_zeros(z.shape[0]) if grad_log_det is None else grad_log_det
    alpha, p, depth = _positive(alpha), softplus(beta), beta.shape[-1]
    inputs = [z]
    for k in range(depth - 1):
        v = z - center[..., k, :]
        z = center[..., k, :] + _growth(_length(v), alpha[..., k], p[..., k])[0][:, None] * v
        inputs.append(z)
    found: list = [None] * depth
    for k in layers(depth, not inverse):
        part = (center[..., k, :], alpha[..., k], p[..., k])
        g, *found[k], _ = _layer_backward(inputs[k], g, grad_log_det, *part, inverse)
    if depth == 0:
        return g.to(saved.dtype), torch.zeros_like(center), torch.zeros_like(alpha), torch.zeros_like(beta)
    per_row = [torch.stack(parts, 1) for parts in zip(*found)]
    of_center, of_alpha, of_p = per_row if center.dim() == 3 else [part.sum(0) for part in per_row]
    return g.to(saved.dtype), of_center, of_alpha, of_p * torch.sigmoid(beta)
