"""Ready flows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .flows import Flow
from .nn import AffineCoupling


class MLP(nn.Module):
    """The conditioner of `realnvp`: linear layers with ReLU between them; the last starts at zero.

    A coupling whose conditioner returns zero is the identity, so a flow of these starts there.
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int], context: int = 0) -> None:
        super().__init__()
        self.context = context
        sizes = [inputs + context, *hidden, outputs]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        between = [layer for linear in layers[:-1] for layer in (linear, nn.ReLU())]
        self.layers = nn.Sequential(*between, layers[-1])

    def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
        if self.context == 0:
            if context is not None:
                raise ValueError(f"the model was built with context=0; got a context of shape {tuple(context.shape)}")
            return self.layers(kept)
        if context is None or context.shape[1:] != (self.context,):
            got = None if context is None else tuple(context.shape)
            raise ValueError(f"the model was built for a context of shape (B, {self.context}); got {got}")
        return self.layers(torch.cat((kept, context), dim=1))


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}; got {value!r}")


def realnvp(features: int, *, transforms: int = 8, hidden: Sequence[int] = (64, 64), context: int = 0) -> Flow:
    """RealNVP for vectors: affine couplings that keep the first and the last half of the features in turn.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), with log-scales bounded by
    2 tanh(s / 2) and a standard normal base. It starts as the identity.

    Args:
        features: size of x, at least 2.
        transforms: number of coupling layers.
        hidden: sizes of the hidden layers of each conditioner.
        context: size of the context vector on which the density depends; 0 for none.

    Returns:
        A `Flow` over x of shape (B, features), with a context of shape (B, context) where that is not 0.

    Raises:
        ValueError: for a number out of range, naming it.

    Example:
        >>> import torch, flowkernels as fk
        >>> flow = fk.models.realnvp(6, context=3)
        >>> flow.log_prob(torch.randn(10, 6), torch.randn(10, 3)).shape
        torch.Size([10])
        >>> flow.sample(4, torch.randn(10, 3)).shape
        torch.Size([10, 4, 6])
    """
    _whole("features", features, 2)
    _whole("transforms", transforms, 1)
    _whole("context", context, 0)
    for size in hidden:
        _whole("hidden", size, 1)
    halves = features // 2, features - features // 2
    layers = []
    for i in range(transforms):
        kept = halves[i % 2]
        conditioner = MLP(kept, 2 * (features - kept), hidden, context)
        layers.append(AffineCoupling(conditioner, passive=kept if i % 2 == 0 else -kept))
    return Flow(layers, event_shape=(features,))
