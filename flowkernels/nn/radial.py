"""Radial layers: each moves points along rays from a centre."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import radial
from .stack import Amortization, Stack

_ONE = math.log(math.e - 1)  # softplus of it is 1


def _identity(features: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """center, free alpha and beta of layers with alpha = 1 and β̂ = 0, each with a centre drawn from a normal."""
    return torch.randn(depth, features), torch.full((depth,), _ONE), torch.full((depth,), _ONE)


class _Radial(Stack):
    """A stack of radial maps whose parameters a subclass gives, with alpha as the softplus of a free number."""

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        center, free_alpha, beta = self._parameters_for(context)
        return radial(x, center, F.softplus(free_alpha), beta, inverse=inverse)


class Radial(_Radial):
    """A stack of radial flows f(z) = z + β̂ (z - z0) / (alpha + |z - z0|), in one pass.

    Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equations 13 and 14 and appendix A.2;
    `fk.radial` has the formulas. The inverse of f is the root of a quadratic.

    Args:
        features: size D of x.
        depth: number K of maps, layer 0 of `f` applied first; 0 is the identity.
        generative: with True, `inverse` (latent -> data) is f, as in variational inference; with False `forward`
            (data -> latent) is f, as in density estimation.

    Parameters `center` (K, D), `free_alpha` (K), whose softplus is alpha, and `beta` (K). The layer starts near the
    identity: centres drawn from a standard normal, alpha = 1, and beta such that β̂ has a deviation of 0.06.

    Shapes:
        x, y: (B, D); log_det: (B,), float64 where x is, else float32. A context is accepted and not used.

    Raises:
        ValueError: for a number out of range, naming it. When called: for an x of another width.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.Radial(2, depth=8)
        >>> z = torch.randn(16, 2)
        >>> x, log_det = layer.inverse(z)
        >>> torch.allclose(layer(x)[0], z, atol=1e-4), log_det.shape
        (True, torch.Size([16]))
    """

    def __init__(self, features: int, depth: int = 1, *, generative: bool = True) -> None:
        super().__init__(features, depth, generative)
        self.center = nn.Parameter(torch.empty(depth, features))
        self.free_alpha = nn.Parameter(torch.empty(depth))
        self.beta = nn.Parameter(torch.empty(depth))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew, from torch's global generator."""
        center, free_alpha, beta = _identity(self.features, self.depth)
        self.center.copy_(center)
        self.free_alpha.copy_(free_alpha)
        self.beta.copy_(beta + 0.1 * torch.randn_like(beta))

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, ...]:
        return self.center, self.free_alpha, self.beta


class AmortizedRadial(_Radial):
    """A stack of radial flows whose parameters are a linear map of the context: each example has its own.

    Args:
        features, depth, generative: as for `Radial`.
        context_features: size C of the context.

    The map `amortization`, an `nn.Linear` from context / √C to K (D + 2) numbers, starts with weight 0 and the bias
    that makes every layer the identity, whatever the context.

    Shapes:
        x, y: (B, D); context: (B, C); log_det: (B,).

    Raises:
        ValueError: for a number out of range, naming it. When called: for a context that is missing or of another
            shape.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.AmortizedRadial(2, depth=8, context_features=5)
        >>> z, context = torch.randn(16, 2), torch.randn(16, 5)
        >>> x, log_det = layer.inverse(z, context)
        >>> torch.allclose(x, z, atol=1e-5), log_det.shape
        (True, torch.Size([16]))
    """

    def __init__(self, features: int, depth: int, context_features: int, *, generative: bool = True) -> None:
        super().__init__(features, depth, generative)
        self.amortization = Amortization(context_features, _identity(features, depth), damped=True)

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, ...]:
        return self.amortization.split(context)
