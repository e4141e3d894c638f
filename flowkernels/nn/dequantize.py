"""From whole numbers, such as the pixels of an image, to real latents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import dequantize, quantize
from ..ops.dequantize.check import check_numbers

# The noise keeps this distance from 0 and 1: for any closer one, float32 rounds x + u up to the next level.
MARGIN = 2.0**-12


def _log_share(x: Tensor) -> float:
    """For one row of x, log |du' / du| of the map from u in [0, 1] to u' in [MARGIN, 1 - MARGIN]."""
    return math.prod(x.shape[1:]) * math.log1p(-2 * MARGIN)


def _log_logistic(y: Tensor) -> Tensor:
    """The log-density of each row under standard logistic distributions, which is log |d sigmoid(y) / dy| too."""
    return (F.logsigmoid(y) + F.logsigmoid(-y)).flatten(1).sum(1)


class Dequantize(nn.Module):
    """Uniform dequantization followed by a logit: whole numbers 0, ..., levels - 1 to the real line.

    ``p = (x + u) / levels``, ``q = p (1 - alpha) + alpha / 2``, ``z = logit(q)`` with u uniform in
    [2^-12, 1 - 2^-12], drawn from torch's global generator. `inverse` returns the whole numbers exactly, in float32 up
    to 256 levels.

    Theis, van den Oord and Bethge, "A note on the evaluation of generative models" (2016): with log_det as
    returned here, log p(z) + log_det has an expectation over u that is a lower bound on the log-likelihood of x as
    discrete data. It contains the density of u, so that bits per dimension come out right.

    Args:
        levels: how many values x takes: 256 for 8-bit images, 17 for scikit-learn's digits.
        alpha: keeps q away from 0 and 1, by alpha / 2 on either side.

    Shapes:
        x: (B, ...), integer or floating point, holding 0, ..., levels - 1 (not checked: other values give NaN or
        meaningless results). z: the same shape, float64 where x is or the layer was moved there by ``.double()``, else
        torch's default dtype; `inverse` returns uint8 for at most 256 levels, else int32. log_det: (B,), of z's dtype.

    Raises:
        ValueError: unless levels is from 2 to 65536 and 0 <= alpha < 1.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.Dequantize(levels=17)
        >>> x = torch.randint(17, (4, 64))
        >>> z, log_det = layer(x)
        >>> torch.equal(layer.inverse(z)[0], x.to(torch.uint8)), log_det.shape
        (True, torch.Size([4]))
    """

    dequantizes = True  # what Flow.bits_per_dim looks for
    _place: Tensor

    def __init__(self, levels: int = 256, alpha: float = 1e-5) -> None:
        super().__init__()
        check_numbers(levels, alpha)
        self.levels = levels
        self.alpha = float(alpha)
        # Follows .to(), to say in which dtype whole numbers become real; nothing to save.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        noise = self._uniform(x, MARGIN, 1 - MARGIN)
        z, log_det = dequantize(x, noise, levels=self.levels, alpha=self.alpha)
        return z, log_det + _log_share(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        constant = math.prod(y.shape[1:]) * (math.log1p(-self.alpha) - math.log(self.levels)) + _log_share(y)
        return quantize(y, levels=self.levels, alpha=self.alpha), _log_logistic(y) - constant

    def _uniform(self, x: Tensor, low: float, high: float) -> Tensor:
        """Fresh noise for x, in the dtype that z will have."""
        dtype = torch.promote_types(self._place.dtype, torch.get_default_dtype())
        return torch.empty_like(x, dtype=torch.promote_types(x.dtype, dtype)).uniform_(low, high)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, alpha={self.alpha:g}"


class VariationalDequantize(Dequantize):
    """Dequantization with noise from a flow conditioned on the image: u ~ q(u | x) in the place of uniform u.

    Ho et al., "Flow++" (2019), section 3.1; Lippe, "UvA Deep Learning Tutorials", tutorial 11. Logistic noise e goes
    through the inverses of the layers to y, and u is sigmoid(y) mapped to [2^-12, 1 - 2^-12]; then z is that of
    `Dequantize`. With log_det as returned here, which contains -log q(u | x), log p(z) + log_det has an expectation
    that is a lower bound on the log-likelihood of x as discrete data. Layers that are the identity give `Dequantize`.

    Args:
        flow: the layers of the conditional flow, listed as those of `fk.Flow`, from data (y) to latent (e). Their
            context is the image, scaled to [-1, 1]. Only their inverses are used: `fk.nn.Inverse` exchanges directions.
        levels: how many values x takes.
        alpha: as for `Dequantize`.

    A context that the layer is given itself is accepted and not used: the bound holds for any q(u | x).

    Shapes:
        as for `Dequantize`. The context of the layers has the shape of x. As the whole numbers do not tell the noise
        that they were given, the log_det of `inverse` is that of uniform noise.

    Raises:
        TypeError: for a `flow` that is no sequence of modules with an inverse.
        ValueError: for numbers out of range, as in `Dequantize`.

    Example:
        >>> import torch, flowkernels as fk
        >>> masks = [fk.nn.checkerboard_mask(8, 8, invert=i % 2 == 1) for i in range(2)]
        >>> flow = [fk.nn.AffineCoupling(fk.nn.GatedConvNet(1, 16, context=1), mask=mask) for mask in masks]
        >>> layer = fk.nn.VariationalDequantize(flow, levels=17)
        >>> x = torch.randint(17, (4, 1, 8, 8))
        >>> z, log_det = layer(x)
        >>> torch.equal(layer.inverse(z)[0], x.to(torch.uint8)), log_det.shape
        (True, torch.Size([4]))
    """

    def __init__(self, flow: Iterable[nn.Module], levels: int = 256, alpha: float = 1e-5) -> None:
        super().__init__(levels, alpha)
        if not isinstance(flow, Iterable):
            raise TypeError(
                f"flow must be a sequence of layers, such as the layers of a Flow; got {type(flow).__name__}"
            )
        layers = list(flow)
        for index, layer in enumerate(layers):
            if not isinstance(layer, nn.Module) or not hasattr(layer, "inverse"):
                raise TypeError(f"layer {index} of flow must be a module with inverse; got {type(layer).__name__}")
        self.flow: Any = nn.ModuleList(layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        uniform = self._uniform(x, 0, 1)
        y = torch.logit(uniform, eps=2.0**-24)  # what torch draws from: a 0 would be a logit of -inf
        log_q = _log_logistic(y)
        image = x.to(uniform.dtype) * (2 / (self.levels - 1)) - 1
        for layer in reversed(self.flow):
            y, log_det = layer.inverse(y, image)
            log_q = log_q - log_det
        u = torch.sigmoid(y) * (1 - 2 * MARGIN) + MARGIN
        log_q = log_q - _log_logistic(y) - _log_share(y)
        z, log_det = dequantize(x, u, levels=self.levels, alpha=self.alpha)
        return z, log_det - log_q
