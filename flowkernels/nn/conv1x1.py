"""Invertible 1x1 convolutions: a learned linear map of the channels of each pixel."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._compat import transforming
from ..ops.layout import accumulation_dtype, memory_format
from .actnorm import ActNorm
from .arguments import whole


class InvertibleConv1x1(nn.Module):
    """y = W x for the channels of each pixel; log_det = H W log |det W|.

    Kingma and Dhariwal, "Glow" (2018), sections 3.2 and 3.3. W starts as a random rotation, drawn from torch's global
    generator. torch multiplies: a convolution is one pass forward.

    Args:
        channels: size C of dimension 1.
        lu: W = P L (U + diag(s)) with a fixed permutation P, L lower triangular with a unit diagonal, U strictly upper
            triangular and s of fixed signs: log |det W| is then sum(log |s|), without a factorisation at each call.

    Parameters: `weight` (C, C); with `lu`, `lower`, `upper` (C, C), of which the other triangle is not used, and
    `log_s` (C,), beside the buffers `order` (P as row indices) and `sign_s`. The inverse of W and log |det W| are
    computed in float64.

    Shapes:
        x, y: (B, C, ...), of one dtype, under autocast too; log_det: (B,), float64 where x is, else float32. A context
        is accepted and not used.

    Raises:
        ValueError: for a number out of range. When called: for an x with another number of channels. A W that is
            singular gives a log_det of -inf and an inverse that is not finite.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.InvertibleConv1x1(4, lu=True)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> y, log_det = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-5), torch.allclose(log_det, torch.zeros(2), atol=1e-4)
        (True, True)
    """

    order: Tensor
    sign_s: Tensor

    def __init__(self, channels: int, lu: bool = False) -> None:
        super().__init__()
        whole("channels", channels, 1)
        self.channels = channels
        self.lu = bool(lu)
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        if not lu:
            self.weight = nn.Parameter(rotation)
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        s = upper.diagonal()
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_s = nn.Parameter(s.abs().log())
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign_s", s.sign())

    def matrix(self) -> tuple[Tensor, Tensor]:
        """W, shape (C, C), and log |det W|, a scalar in float64."""
        if not self.lu:
            return self.weight, torch.linalg.slogdet(self.weight.double())[1]
        unit = torch.eye(self.channels, dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign_s * self.log_s.exp())
        return ((self.lower.tril(-1) + unit) @ upper)[self.order], self.log_s.double().sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with _without_autocast(x):
            weight, log_det = self.matrix()
            return pointwise(x, weight), per_pixel(log_det, x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with _without_autocast(y):
            weight, log_det = self.matrix()
            return pointwise(y, _inverse(weight)), per_pixel(-log_det, y)

    def extra_repr(self) -> str:
        return f"{self.channels}" + (", lu=True" if self.lu else "")


class ActNormConv1x1(nn.Module):
    """`ActNorm` followed by `InvertibleConv1x1`, in the one pass of the convolution.

    W (exp(log_scale) x + shift) = (W diag(exp(log_scale))) x + W shift is a convolution with a bias: values, gradients
    and the initialisation are those of the two layers, and the pass of the first one over the image is gone.

    Args:
        channels: size C of dimension 1.
        lu: as for `InvertibleConv1x1`.

    Holds the two layers, `actnorm` and `conv`, with their parameters.

    Shapes:
        x, y: (B, C, ...); log_det: (B,), float64 where x is, else float32. A context is accepted and not used.

    Raises:
        ValueError: as the two layers.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.ActNormConv1x1(4)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> y, log_det = layer(x)
        >>> apart, _ = layer.conv(layer.actnorm(x)[0])
        >>> torch.allclose(y, apart, atol=1e-5), torch.allclose(layer.inverse(y)[0], x, atol=1e-5)
        (True, True)
    """

    def __init__(self, channels: int, lu: bool = False) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.conv = InvertibleConv1x1(channels, lu)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.actnorm.pending():
            self.actnorm.initialize(x)
        log_scale, shift = self.actnorm.log_scale, self.actnorm.shift
        with _without_autocast(x):
            weight, log_det = self.conv.matrix()
            y = pointwise(x, weight * log_scale.exp(), weight @ shift)
        return y, per_pixel(log_det + log_scale.sum(), x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with _without_autocast(y):
            weight, log_det = self.conv.matrix()
            unmixing = _inverse(weight)
            if self.actnorm.pending(inverse=True):
                self.actnorm.initialize(pointwise(y, unmixing), inverse=True)
            log_scale, shift = self.actnorm.log_scale, self.actnorm.shift
            scale = torch.exp(-log_scale)
            x = pointwise(y, scale[:, None] * unmixing, -scale * shift)
        return x, per_pixel(-log_det - log_scale.sum(), y)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast is for conditioners: a latent rounded to 8 bits would neither score nor come back right."""
    device = x.device.type  # even where autocast is off now: what is exported may run where it is on
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight x + bias for the channels of each pixel."""
    if x.dim() < 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must have shape (B, {weight.shape[1]}, ...); got {tuple(x.shape)}")
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if x.dim() == 2:
        return F.linear(x, weight, bias)
    pixels = math.prod(x.shape[2:])
    if x.is_cpu and x.shape[1] <= 4 * pixels and not transforming() and memory_format(x) is torch.contiguous_format:
        # A product for each example: torch's convolution takes several times as long, for images in order. Its gradient
        # has a matrix for each example, which many channels of few pixels would make large.
        matrices, rows = weight.expand(x.shape[0], *weight.shape), x.flatten(2)
        y = torch.bmm(matrices, rows) if bias is None else torch.baddbmm(bias[:, None], matrices, rows)
        return y.view(x.shape)
    image = x if x.dim() == 4 else x.reshape(*x.shape[:2], pixels, 1)
    return F.conv2d(image, weight[:, :, None, None], bias).reshape(x.shape)


def per_pixel(log_det: Tensor, x: Tensor) -> Tensor:
    """The log-determinant of a map of each pixel from that of one."""
    return (log_det * math.prod(x.shape[2:])).to(accumulation_dtype(x.dtype)).expand(x.shape[0])


def _inverse(weight: Tensor) -> Tensor:
    """The inverse, computed in float64; not checked, which would wait for the device."""
    return torch.linalg.inv_ex(weight.double())[0].to(weight.dtype)
