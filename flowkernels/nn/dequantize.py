"""From whole numbers, such as the pixels of an image, to real latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The noise keeps this distance from 0 and 1: for any closer one, float32 rounds x + u up to the next level.
MARGIN = 2.0**-12


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
        meaningless results). z: the same shape, float64 where x is float64, else torch's default dtype; `inverse`
        returns uint8 for at most 256 levels, else int32. log_det: (B,), of z's dtype.

    Raises:
        ValueError: unless levels is at least 2 and 0 <= alpha < 1.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.Dequantize(levels=17)
        >>> x = torch.randint(17, (4, 64))
        >>> z, log_det = layer(x)
        >>> torch.equal(layer.inverse(z)[0], x.to(torch.uint8)), log_det.shape
        (True, torch.Size([4]))
    """

    dequantizes = True  # what Flow.bits_per_dim looks for

    def __init__(self, levels: int = 256, alpha: float = 1e-5) -> None:
        super().__init__()
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ValueError(f"levels must be an integer, at least 2; got {levels!r}")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must be in [0, 1); got {alpha!r}")
        self.levels = levels
        self.alpha = float(alpha)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.get_default_dtype()))
        u = torch.rand_like(x) * (1 - 2 * MARGIN) + MARGIN
        # q and 1 - q each by a sum of positive terms: 1 - q from a rounded q would be off by up to half a percent.
        log_q = self._log_share(x + u)
        log_rest = self._log_share((self.levels - 1 - x) + (1 - u))
        return log_q - log_rest, self._constant(x) - (log_q + log_rest).flatten(1).sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p = (torch.sigmoid(y) - self.alpha / 2) / (1 - self.alpha)
        x = (p * self.levels).floor().clamp(0, self.levels - 1)
        log_det = (F.logsigmoid(y) + F.logsigmoid(-y)).flatten(1).sum(1) - self._constant(y)
        return x.to(torch.uint8 if self.levels <= 256 else torch.int32), log_det

    def _log_share(self, part: Tensor) -> Tensor:
        return torch.log(part * ((1 - self.alpha) / self.levels) + self.alpha / 2)

    def _constant(self, x: Tensor) -> float:
        """The part of log_det that does not depend on x: scaling by (1 - alpha) / levels, and the density of u."""
        return math.prod(x.shape[1:]) * (math.log1p(-self.alpha) - math.log(self.levels) + math.log1p(-2 * MARGIN))

    def extra_repr(self) -> str:
        return f"levels={self.levels}, alpha={self.alpha:g}"
