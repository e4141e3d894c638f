"""Planar layers: each moves points along one direction, by an amount that depends on their place along another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..functional import planar
from ..ops.planar.check import check_activation
from .stack import Amortization, Stack

_UNMOVED = math.log(math.e - 1)  # for wᵀu of this size, softplus(wᵀu) = 1: the layer does not stretch along w


def _identity(features: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, w and b of layers with û = 0, each with w of length 1 in a random direction."""
    w = nn.functional.normalize(torch.randn(depth, features), dim=1)
    return _UNMOVED * w, w, torch.zeros(depth)


class _Planar(Stack):
    """A stack of planar maps whose parameters a subclass gives."""

    def __init__(self, features: int, depth: int, activation: str, negative_slope: float, generative: bool) -> None:
        super().__init__(features, depth, generative)
        check_activation(activation, negative_slope)
        self.activation = activation
        self.negative_slope = float(negative_slope)

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        u, w, b = self._parameters_for(context)
        return planar(x, u, w, b, activation=self.activation, negative_slope=self.negative_slope, inverse=inverse)

    def extra_repr(self) -> str:
        slope = f", activation=leaky_relu, negative_slope={self.negative_slope:g}"
        return super().extra_repr() + (slope if self.activation == "leaky_relu" else "")


class Planar(_Planar):
    """A stack of planar flows f(z) = z + û h(wᵀz + b), in one pass.

    Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equations 10 to 12 and appendix A.1;
    `fk.planar` has the formulas. The direction that is not in closed form is solved for one number per layer.

    Args:
        features: size D of x.
        depth: number K of maps, layer 0 of `f` applied first; 0 is the identity.
        activation: h, ``"tanh"`` or ``"leaky_relu"``.
        negative_slope: of ``leaky_relu``, between 0 and 1.
        generative: with True, `inverse` (latent -> data) is f, as in variational inference, where samples and their
            density are what is needed; with False `forward` (data -> latent) is f, as in density estimation. The
            other direction is the solve.

    Parameters `u`, `w` (K, D) and `b` (K). The layer starts near the identity: w of length 1 in a random direction, a
    random û of length about 0.4, b = 0.

    Shapes:
        x, y: (B, D); log_det: (B,), float64 where x is, else float32. A context is accepted and not used.

    Raises:
        ValueError: for a number or a name out of range, naming it. When called: for an x of another width.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.Planar(2, depth=8)
        >>> z = torch.randn(16, 2)
        >>> x, log_det = layer.inverse(z)
        >>> torch.allclose(layer(x)[0], z, atol=1e-4), log_det.shape
        (True, torch.Size([16]))
    """

    def __init__(
        self,
        features: int,
        depth: int = 1,
        *,
        activation: str = "tanh",
        negative_slope: float = 0.2,
        generative: bool = True,
    ) -> None:
        super().__init__(features, depth, activation, negative_slope, generative)
        self.u = nn.Parameter(torch.empty(depth, features))
        self.w = nn.Parameter(torch.empty(depth, features))
        self.b = nn.Parameter(torch.empty(depth))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew, from torch's global generator."""
        u, w, b = _identity(self.features, self.depth)
        self.u.copy_(u + 0.4 / math.sqrt(self.features) * torch.randn_like(u))
        self.w.copy_(w)
        self.b.copy_(b)

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, ...]:
        return self.u, self.w, self.b


class AmortizedPlanar(_Planar):
    """A stack of planar flows whose parameters are a linear map of the context: each example has its own.

    Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), section 4: with the last layer of an
    inference network as the context, the posterior of a variational autoencoder.

    Args:
        features, depth, activation, negative_slope, generative: as for `Planar`.
        context_features: size C of the context.

    The map `amortization`, an `nn.Linear` from context / √C to K (2 D + 1) numbers, starts with weight 0 and the bias
    that makes every layer the identity, whatever the context. û grows like 1 / |w| as w tends to 0: a start with w
    near 0, such as a small bias, would throw points far away.

    Shapes:
        x, y: (B, D); context: (B, C); log_det: (B,).

    Raises:
        ValueError: for a number or a name out of range, naming it. When called: for a context that is missing or of
            another shape.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.AmortizedPlanar(2, depth=8, context_features=5)
        >>> z, context = torch.randn(16, 2), torch.randn(16, 5)
        >>> x, log_det = layer.inverse(z, context)
        >>> torch.allclose(x, z, atol=1e-5), log_det.shape
        (True, torch.Size([16]))
    """

    def __init__(
        self,
        features: int,
        depth: int,
        context_features: int,
        *,
        activation: str = "tanh",
        negative_slope: float = 0.2,
        generative: bool = True,
    ) -> None:
        super().__init__(features, depth, activation, negative_slope, generative)
        self.amortization = Amortization(context_features, _identity(features, depth), damped=True)

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, ...]:
        return self.amortization.split(context)
