"""The ops as a person would write them in PyTorch: what the fused operations are compared with.

Each function takes x and what the op takes beside it, and returns (y, log_det); `inverse_...` undoes it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BOUND = 2.0
SOFTCLIP_BOUND = -math.log(1e-3)
ALPHA = 1e-5

Pair = tuple[Tensor, Tensor]


def exp(x: Tensor, raw: Tensor) -> Pair:
    s, t = raw.chunk(2, dim=1)
    return x * s.exp() + t, s.flatten(1).sum(1)


def inverse_exp(y: Tensor, raw: Tensor) -> Pair:
    s, t = raw.chunk(2, dim=1)
    return (y - t) * (-s).exp(), -s.flatten(1).sum(1)


def tanh(x: Tensor, raw: Tensor) -> Pair:
    s, t = raw.chunk(2, dim=1)
    s = BOUND * torch.tanh(s / BOUND)
    return x * s.exp() + t, s.flatten(1).sum(1)


def inverse_tanh(y: Tensor, raw: Tensor) -> Pair:
    s, t = raw.chunk(2, dim=1)
    s = BOUND * torch.tanh(s / BOUND)
    return (y - t) * (-s).exp(), -s.flatten(1).sum(1)


def tanh_half(x: Tensor, raw: Tensor) -> Pair:
    kept, active = x.chunk(2, dim=1)
    active, log_det = tanh(active, raw)
    return torch.cat((kept, active), dim=1), log_det


def inverse_tanh_half(y: Tensor, raw: Tensor) -> Pair:
    kept, active = y.chunk(2, dim=1)
    active, log_det = inverse_tanh(active, raw)
    return torch.cat((kept, active), dim=1), log_det


def tanh_masked(active: Tensor) -> tuple[object, object]:
    """The pair for a mask of floats, 1 = transformed, as the tutorials have it."""

    def forward(x: Tensor, raw: Tensor) -> Pair:
        s, t = raw.chunk(2, dim=1)
        s = BOUND * torch.tanh(s / BOUND) * active
        return x * s.exp() + t * active, s.flatten(1).sum(1)

    def inverse(y: Tensor, raw: Tensor) -> Pair:
        s, t = raw.chunk(2, dim=1)
        s = BOUND * torch.tanh(s / BOUND) * active
        return (y - t * active) * (-s).exp(), -s.flatten(1).sum(1)

    return forward, inverse


def interleaved_sigmoid_half(x: Tensor, raw: Tensor) -> Pair:
    kept, active = x.chunk(2, dim=1)
    scale = torch.sigmoid(raw[:, 1::2] + 2)
    y = active / scale + raw[:, 0::2]
    return torch.cat((kept, y), dim=1), -scale.log().flatten(1).sum(1)


def inverse_interleaved_sigmoid_half(y: Tensor, raw: Tensor) -> Pair:
    kept, active = y.chunk(2, dim=1)
    scale = torch.sigmoid(raw[:, 1::2] + 2)
    x = (active - raw[:, 0::2]) * scale
    return torch.cat((kept, x), dim=1), scale.log().flatten(1).sum(1)


def sigmoid_floor_half(x: Tensor, raw: Tensor) -> Pair:
    kept, active = x.chunk(2, dim=1)
    t, s = raw.chunk(2, dim=1)
    scale = torch.sigmoid(s + 2) + 1e-3
    return torch.cat((kept, active * scale + t), dim=1), scale.log().flatten(1).sum(1)


def inverse_sigmoid_floor_half(y: Tensor, raw: Tensor) -> Pair:
    kept, active = y.chunk(2, dim=1)
    t, s = raw.chunk(2, dim=1)
    scale = torch.sigmoid(s + 2) + 1e-3
    return torch.cat((kept, (active - t) / scale), dim=1), -scale.log().flatten(1).sum(1)


def atan_half(x: Tensor, raw: Tensor) -> Pair:
    kept, active = x.chunk(2, dim=1)
    s, t = raw.chunk(2, dim=1)
    s = BOUND * 0.636 * torch.atan(s)
    return torch.cat((kept, active * s.exp() + t), dim=1), s.flatten(1).sum(1)


def inverse_atan_half(y: Tensor, raw: Tensor) -> Pair:
    kept, active = y.chunk(2, dim=1)
    s, t = raw.chunk(2, dim=1)
    s = BOUND * 0.636 * torch.atan(s)
    return torch.cat((kept, (active - t) * (-s).exp()), dim=1), -s.flatten(1).sum(1)


def softclip_half(x: Tensor, raw: Tensor) -> Pair:
    kept, active = x.chunk(2, dim=1)
    t, s = raw.unbind(-1)
    s = s / (1 + (s / SOFTCLIP_BOUND).abs())
    return torch.cat((kept, active * s.exp() + t), dim=1), s.flatten(1).sum(1)


def inverse_softclip_half(y: Tensor, raw: Tensor) -> Pair:
    kept, active = y.chunk(2, dim=1)
    t, s = raw.unbind(-1)
    s = s / (1 + (s / SOFTCLIP_BOUND).abs())
    return torch.cat((kept, (active - t) * (-s).exp()), dim=1), -s.flatten(1).sum(1)


def softplus_half(x: Tensor, raw: Tensor) -> Pair:
    kept, active = x.chunk(2, dim=1)
    t, s = raw.unbind(-1)
    scale = F.softplus(s)
    return torch.cat((kept, active * scale + t), dim=1), scale.log().flatten(1).sum(1)


def inverse_softplus_half(y: Tensor, raw: Tensor) -> Pair:
    kept, active = y.chunk(2, dim=1)
    t, s = raw.unbind(-1)
    scale = F.softplus(s)
    return torch.cat((kept, (active - t) / scale), dim=1), -scale.log().flatten(1).sum(1)


def planar(x: Tensor, u: Tensor, w: Tensor, b: Tensor) -> Pair:
    total = torch.zeros_like(x[:, 0])
    for u_k, w_k, b_k in zip(u.unbind(0), w.unbind(0), b.unbind(0)):
        product = w_k @ u_k
        u_hat = u_k + (F.softplus(product) - 1 - product) * w_k / w_k.square().sum()
        h = torch.tanh(x @ w_k + b_k)
        x = x + u_hat * h[:, None]
        total = total + torch.log(1 + (w_k @ u_hat) * (1 - h.square()))
    return x, total


def radial(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> Pair:
    total = torch.zeros_like(x[:, 0])
    for z_k, a_k, b_k in zip(center.unbind(0), alpha.unbind(0), beta.unbind(0)):
        v = x - z_k
        r = v.norm(dim=1)
        shrink = F.softplus(b_k) - a_k
        h = shrink / (a_k + r)
        x = x + h[:, None] * v
        total = total + (x.shape[1] - 1) * torch.log(1 + h) + torch.log(1 + h - shrink * r / (a_k + r) ** 2)
    return x, total


def inverse_radial(y: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> Pair:
    total = torch.zeros_like(y[:, 0])
    for z_k, a_k, b_k in zip(*(t.flip(0).unbind(0) for t in (center, alpha, beta))):
        v = y - z_k
        rho, shrink = v.norm(dim=1), F.softplus(b_k) - a_k
        t = a_k + shrink - rho
        r = 0.5 * (torch.sqrt(t.square() + 4 * a_k * rho) - t)
        h = shrink / (a_k + r)
        y = z_k + v / (1 + h[:, None])
        total = total - (y.shape[1] - 1) * torch.log(1 + h) - torch.log(1 + h - shrink * r / (a_k + r) ** 2)
    return y, total


SPLINE_BINS, SPLINE_BOUND, LEAST = 8, 3.0, 1e-3


def _knots(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Where bins begin and end, and their sizes."""
    sizes = LEAST + (1 - SPLINE_BINS * LEAST) * torch.softmax(raw, -1)
    ends = SPLINE_BOUND * (2 * F.pad(sizes.cumsum(-1), (1, 0)) - 1)
    return ends, ends.diff()


def _bins(x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """Corner, size, and derivatives of the bin of each element, and which elements are inside."""
    raw = raw.view(*x.shape, -1)
    x_knots, widths = _knots(raw[..., :SPLINE_BINS])
    y_knots, heights = _knots(raw[..., SPLINE_BINS : 2 * SPLINE_BINS])
    derivatives = F.pad(LEAST + F.softplus(raw[..., 2 * SPLINE_BINS :]), (1, 1), value=1.0)
    inside = x.abs() <= SPLINE_BOUND
    knots = (y_knots if inverse else x_knots)[..., 1:-1]
    k = (x[..., None] >= knots).sum(-1, keepdim=True)
    values = (x_knots, widths, y_knots, heights, derivatives, derivatives[..., 1:])
    return *(v.gather(-1, k).squeeze(-1) for v in values), inside


def _spline_slope(t: Tensor, s: Tensor, first: Tensor, last: Tensor) -> Tensor:
    numerator = s**2 * (last * t**2 + 2 * s * t * (1 - t) + first * (1 - t) ** 2)
    return torch.log(numerator) - 2 * torch.log(s + (first + last - 2 * s) * t * (1 - t))


def spline(x: Tensor, raw: Tensor) -> Pair:
    """A rational-quadratic spline of each element in nflows' parameterisation, without indexing by masks."""
    left, width, bottom, height, first, last, inside = _bins(x, raw, False)
    s, t = height / width, (torch.where(inside, x, 0) - left) / width
    t = torch.where(inside, t, 0.5)
    numerator = height * (s * t**2 + first * t * (1 - t))
    y = bottom + numerator / (s + (first + last - 2 * s) * t * (1 - t))
    log_slope = torch.where(inside, _spline_slope(t, s, first, last), 0)
    return torch.where(inside, y, x), log_slope.sum(1)


def inverse_spline(y: Tensor, raw: Tensor) -> Pair:
    """Undo `spline`."""
    left, width, bottom, height, first, last, inside = _bins(y, raw, True)
    s, v = height / width, torch.where(inside, y - bottom, 0)
    both = v * (first + last - 2 * s)
    a, b, c = height * (s - first) + both, height * first - both, -s * v
    t = 2 * c / (-b - torch.sqrt((b**2 - 4 * a * c).clamp(min=0)))
    log_slope = torch.where(inside, _spline_slope(t, s, first, last), 0)
    return torch.where(inside, left + t * width, y), -log_slope.sum(1)


def dequantize(x: Tensor, noise: Tensor) -> Pair:
    """As in the UvA tutorials."""
    q = (x.to(noise.dtype) + noise) / 256
    q = q * (1 - ALPHA) + 0.5 * ALPHA
    count = math.prod(x.shape[1:])
    log_det = count * (math.log(1 - ALPHA) - math.log(256)) + (-torch.log(q) - torch.log(1 - q)).flatten(1).sum(1)
    return torch.log(q) - torch.log(1 - q), log_det


def split(x: Tensor) -> Pair:
    kept, out = x.chunk(2, dim=1)
    prior = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    return kept, prior.log_prob(out).flatten(1).sum(1)


def split_learned(x: Tensor, mean: Tensor, log_std: Tensor) -> Pair:
    """As in the Glow of rosinality."""
    kept, out = x.chunk(2, dim=1)
    log_prob = -0.5 * math.log(2 * math.pi) - log_std - 0.5 * (out - mean) ** 2 / torch.exp(2 * log_std)
    return kept, log_prob.flatten(1).sum(1)


def squeeze(x: Tensor) -> tuple[Tensor]:
    rows, channels, height, width = x.shape
    blocks = x.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return (blocks.reshape(rows, 4 * channels, height // 2, width // 2),)


def unsqueeze(y: Tensor) -> tuple[Tensor]:
    rows, channels, height, width = y.shape
    blocks = y.view(rows, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return (blocks.reshape(rows, channels // 4, 2 * height, 2 * width),)


def actnorm(x: Tensor, log_scale: Tensor, shift: Tensor) -> Pair:
    log_det = x[0, 0].numel() * log_scale.sum()
    return x * log_scale[:, None, None].exp() + shift[:, None, None], log_det.expand(x.shape[0])


def inverse_actnorm(y: Tensor, log_scale: Tensor, shift: Tensor) -> Pair:
    log_det = y[0, 0].numel() * log_scale.sum()
    return (y - shift[:, None, None]) * (-log_scale[:, None, None]).exp(), -log_det.expand(y.shape[0])


def actnorm_conv1x1(x: Tensor, log_scale: Tensor, shift: Tensor, weight: Tensor) -> Pair:
    y, log_det = actnorm(x, log_scale, shift)
    log_det = log_det + x[0, 0].numel() * torch.linalg.slogdet(weight)[1]
    return F.conv2d(y, weight[:, :, None, None]), log_det


def glow_step(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    third: Tensor,
    third_bias: Tensor,
) -> tuple[Tensor]:
    """The log-density of one step of Glow: normalisation, 1x1 convolution and coupling, as the Glow ports have them."""
    y, log_det = actnorm_conv1x1(x, log_scale, shift, weight)
    kept, rest = y.chunk(2, dim=1)
    h = F.relu(F.conv2d(kept, first, first_bias, padding=1))
    h = F.relu(F.conv2d(h, second, second_bias))
    s, t = F.conv2d(h, third, third_bias, padding=1).chunk(2, dim=1)
    scale = torch.sigmoid(s + 2)
    z = torch.cat((kept, (rest + t) * scale), dim=1)
    log_prob = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    return (log_prob.flatten(1).sum(1) + log_det + scale.log().flatten(1).sum(1),)
