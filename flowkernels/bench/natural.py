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
