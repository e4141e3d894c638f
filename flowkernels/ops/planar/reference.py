"""The specification of planar flows, in plain PyTorch: Rezende and Mohamed, "Variational Inference with Normalizing
Flows" (2015), equations 10 to 12 and appendix A.1.

One layer is y = z + û h(a) with a = wᵀz + b and û = u + (m(wᵀu) - wᵀu) w / |w|², m(s) = softplus(s) - 1, so that
wᵀû > -1 and the layer can be inverted. Its determinant 1 + wᵀû h'(a) is computed as (1 - h') + h' p with
p = 1 + wᵀû = softplus(wᵀu): the other form cancels to 0 in float32 where wᵀu < -17.

Forward and backward are both written out; the tests hold the second to what autograd makes of the first. Everything
is computed in float32, or float64 where x is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import accumulation_dtype
from ..stack import layers, softplus

_NEWTON_STEPS = 40
_SERIES = (  # of tanh, from the cubic term on, with the other sign
    1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925, -21844 / 6081075, 929569 / 638512875,
    -6404582 / 10854718875, 443861162 / 1856156927625, -18888466084 / 194896477400625,
)  # fmt: skip


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def constrained(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """û, shaped like u, and p = 1 + wᵀû, one per layer, kept from underflowing. Where w = 0 these are u and 1."""
    s, square = _dot(u, w), _dot(w, w)
    flat = square == 0
    factor = torch.where(flat, 0, (softplus(-s) - 1) / torch.where(flat, 1, square))
    p = softplus(s).clamp(min=torch.finfo(s.dtype).tiny)
    return u + factor[..., None] * w, torch.where(flat, 1, p)


def _activation(a: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """h(a), h'(a) and 1 - h'(a)."""
    if activation == "leaky_relu":
        slope = torch.where(a > 0, torch.ones_like(a), negative_slope)
        return slope * a, slope, 1 - slope
    h = torch.tanh(a)
    e = torch.exp(-2 * a.abs())
    return h, 4 * e / (1 + e) ** 2, h * h


def _without_tanh(a: Tensor) -> Tensor:
    """a - tanh a, which the difference itself would not know near 0."""
    small = a.abs() < 0.25
    square = torch.where(small, a * a, 0)
    series = torch.zeros_like(a)
    for coefficient in reversed(_SERIES):
        series = series * square + coefficient
    return torch.where(small, a * square * series, a - torch.tanh(a))


def _newton_start(c: Tensor, p: Tensor) -> Tensor:
    """A bound of the root for c >= 0 from the side on which Newton's steps stay: below it where p > 1, else above."""
    below = torch.maximum(c / p, c - (p - 1))
    above = torch.minimum(c / p, c + (1 - p))
    cubic = (5 * c) ** (1 / 3)  # a - tanh a > a³ / 5 for a < 1
    above = torch.where(cubic < 1, torch.fmin(above, cubic), above)  # c / p is NaN where both are 0
    return torch.where(p > 1, below, above)


def _newton_step(a: Tensor, c: Tensor, p: Tensor) -> Tensor:
    h, slope, rest = _activation(a, "tanh", 0.0)
    det = rest + slope * p
    flat = det == 0
    return torch.where(flat, 0, (c - (_without_tanh(a) + p * h)) / torch.where(flat, 1, det))


def solve(c: Tensor, p: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The root a of a + (p - 1) h(a) = c, with derivatives up to the third order.

    The left side is odd, monotone, and for tanh concave or convex beyond 0, so Newton's steps go one way; the root is
    reached when rounding alone would turn them.
    """
    if activation == "leaky_relu":
        return c / torch.where(c > 0, p, (1 - negative_slope) + negative_slope * p)
    with torch.no_grad():
        magnitude, rising = c.abs(), p > 1
        a = _newton_start(magnitude, p)
        for _ in range(_NEWTON_STEPS):
            step = _newton_step(a, magnitude, p)
            a = torch.where(torch.where(rising, step > 0, step < 0), a + step, a)
        a = torch.where(c < 0, -a, a)
    for _ in range(2):  # each of which doubles the order to which the derivatives are right
        a = a + _newton_step(a, c, p)
    return a


def forward(
    x: Tensor, u: Tensor, w: Tensor, b: Tensor, activation: str, negative_slope: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """y and log_det of the stack, or of its inverse."""
    z = x.to(accumulation_dtype(x.dtype))
    log_det = z.new_zeros(x.shape[0])
    corrected, p = constrained(u, w)
    for k in layers(b.shape[-1], inverse):
        a = _dot(z, w[..., k, :]) + b[..., k]
        if inverse:
            a = solve(a, p[..., k].expand_as(a), activation, negative_slope)
        h, slope, rest = _activation(a, activation, negative_slope)
        change, step = torch.log(rest + slope * p[..., k]), corrected[..., k, :] * h[:, None]
        z, log_det = (z - step, log_det - change) if inverse else (z + step, log_det + change)
    return z.to(x.dtype, copy=b.shape[-1] == 0), log_det


def saved(tensors: tuple, outputs: tuple, options: tuple) -> tuple[Tensor, ...]:
    """What backward reads. From the output of an inverse, every layer is found again without solving for it."""
    x, u, w, b = tensors
    return (outputs[0] if options[-1] else x), u, w, b


def _constraint_backward(grad_corrected: Tensor, grad_log_p: Tensor, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of u and w from those of û and log p."""
    s, square = _dot(u, w), _dot(w, w)
    flat = square == 0
    per_square = torch.where(flat, 0, 1 / torch.where(flat, 1, square))
    along = _dot(grad_corrected, w) * per_square
    low = s < -40  # where the slope of log p is 1
    slope = torch.where(low, 1, torch.sigmoid(s) / softplus(torch.where(low, 0, s)))
    grad_s = torch.where(flat, 0, grad_log_p * slope - along * torch.sigmoid(-s))
    factor = (softplus(-s) - 1) * per_square
    grad_u = grad_corrected + grad_s[..., None] * w
    grad_w = factor[..., None] * (grad_corrected - 2 * along[..., None] * w) + grad_s[..., None] * u
    return grad_u, grad_w


def _layer_backward(z, g, grad_log_det, corrected, p, w, b, activation, negative_slope, inverse):
    """Gradients of one layer: of its input, of û, log p, w and b for each row; and the layer's output z + û h."""
    a = _dot(z, w) + b
    h, slope, rest = _activation(a, activation, negative_slope)
    ratio = slope / (rest + slope * p)
    bend = 0 if activation == "leaky_relu" else -2 * h * (p - 1) * ratio  # d log det / da
    along = _dot(g, corrected) * slope + grad_log_det * bend
    of_log_p, of_corrected, y = grad_log_det * ratio * p, h, z + corrected * h[:, None]
    seen = z
    if inverse:  # by the implicit function theorem
        along = -along / (rest + slope * p)
        of_log_p, of_corrected, seen = -h * along * p - of_log_p, -h, y
    return g + along[:, None] * w, of_corrected[:, None] * g, of_log_p, along[:, None] * seen, along, y


def backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    u: Tensor,
    w: Tensor,
    b: Tensor,
    activation: str,
    negative_slope: float,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, u, w and b."""
    z = saved.to(accumulation_dtype(saved.dtype))
    g = torch.zeros_like(z) if grad_y is None else grad_y.to(z.dtype)
    grad_log_det = z.new_zeros(z.shape[0]) if grad_log_det is None else grad_log_det
    corrected, p = constrained(u, w)
    depth = b.shape[-1]

    def layer(k: int, z: Tensor, g: Tensor):
        part = (corrected[..., k, :], p[..., k], w[..., k, :], b[..., k])
        return _layer_backward(z, g, grad_log_det, *part, activation, negative_slope, inverse)

    inputs = [z]
    for k in range(depth - 1):
        step = (
            corrected[..., k, :]
            * _activation(_dot(z, w[..., k, :]) + b[..., k], activation, negative_slope)[0][:, None]
        )
        z = z + step
        inputs.append(z)
    found: list = [None] * depth
    for k in layers(depth, not inverse):
        g, *found[k], _ = layer(k, inputs[k], g)
    if depth == 0:
        return g.to(saved.dtype), torch.zeros_like(u), torch.zeros_like(w), torch.zeros_like(b)
    per_row = [torch.stack(parts, 1) for parts in zip(*found)]
    of_corrected, of_log_p, of_w, of_b = per_row if u.dim() == 3 else [part.sum(0) for part in per_row]
    grad_u, grad_w = _constraint_backward(of_corrected, of_log_p, u, w)
    return g.to(saved.dtype), grad_u, grad_w + of_w, of_b
