"""RealNVP for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from ..flows import Flow
from ..nn import AffineCoupling
from ..nn.arguments import whole
from ..nn.perceptron import MLP


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
    whole("features", features, 2)
    whole("transforms", transforms, 1)
    whole("context", context, 0)
    for size in hidden:
        whole("hidden", size, 1)
    halves = features // 2, features - features // 2
    layers = []
    for i in range(transforms):
        kept = halves[i % 2]
        conditioner = MLP(kept, 2 * (features - kept), hidden, context)
        layers.append(AffineCoupling(conditioner, passive=kept if i % 2 == 0 else -kept))
    return Flow(layers, event_shape=(features,))
