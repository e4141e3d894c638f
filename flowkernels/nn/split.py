"""Factoring out: half of the channels become a latent, the other half goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import log_normal, merge


class Split(nn.Module):
    """Take the second half of the channels out as a latent, scored under a normal prior; the first half goes on.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 3.6; with a prior that depends
    on the half that goes on, Kingma and Dhariwal, "Glow" (2018). It has `encode`, `decode` and `sample_out` in the
    place of `forward` and `inverse`, which is how `fk.Flow` calls and samples through a layer that removes dimensions.

    Args:
        prior: None for a standard normal. Else called as ``prior(kept)``, or ``prior(kept, context)`` where the layer
            is given a context; it returns [mean | log_std] of the half that is taken out, side by side on dimension 1.

    Shapes:
        x: (B, C, ...) with C at least 2, and even without a prior; kept: (B, C - C // 2, ...); out: (B, C // 2, ...);
        log_prob: (B,), float64 where x is, else float32. What the prior returns: (B, 2 (C // 2), ...).

    Raises:
        TypeError: for a prior that cannot be called. When called, ValueError: for shapes that do not fit.

    Example:
        >>> import torch, flowkernels as fk
        >>> x = torch.randn(5, 4, 6, 6)
        >>> layer = fk.nn.Split(torch.nn.Conv2d(2, 4, 3, padding=1))
        >>> kept, out, log_prob = layer.encode(x)
        >>> kept.shape, out.shape, log_prob.shape
        (torch.Size([5, 2, 6, 6]), torch.Size([5, 2, 6, 6]), torch.Size([5]))
        >>> torch.equal(layer.decode(kept, out), x), layer.sample_out(kept).shape
        (True, torch.Size([5, 2, 6, 6]))
    """

    def __init__(self, prior: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        if prior is not None and not callable(prior):
            raise TypeError(f"prior must be callable or None; got {type(prior).__name__}")
        self.prior: Any = prior

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if x.dim() < 2 or x.shape[1] < 2 or (self.prior is None and x.shape[1] % 2):
            at_least = "an even number of channels" if self.prior is None else "at least two channels"
            raise ValueError(f"x must have shape (B, C, ...) with {at_least}; got {tuple(x.shape)}")
        kept, out = x.chunk(2, 1)
        mean, log_std = self._moments(kept, context)
        if mean is not None and mean.shape != out.shape:
            width = 2 * out.shape[1]
            raise ValueError(
                f"prior must return [mean | log_std] of shape {(len(out), width, *out.shape[2:])} for kept of shape"
                f" {tuple(kept.shape)}; got halves of shape {tuple(mean.shape)}"
            )
        return kept, out, log_normal(out, mean, log_std)

    def decode(self, y: Tensor, out: Tensor, context: Tensor | None = None) -> Tensor:
        return merge(y, out)

    def sample_out(
        self,
        y: Tensor,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A draw of what `encode` took out, given what it kept; the temperature scales the standard deviation."""
        mean, log_std = self._moments(y, context)
        shape = y.shape if mean is None else mean.shape
        out = temperature * torch.randn(shape, generator=generator, dtype=y.dtype, device=y.device)
        return out if mean is None or log_std is None else mean + log_std.exp() * out

    def _moments(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.prior is None:
            return None, None
        raw = self.prior(kept) if context is None else self.prior(kept, context)
        mean, log_std = raw.chunk(2, 1)
        return mean, log_std
