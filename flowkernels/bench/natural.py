"""Affine coupling as a person would write it in PyTorch: what the fused operation is compared with.

Each function takes (x, raw) and returns (y, log_det); `inverse_...` undoes it.
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
