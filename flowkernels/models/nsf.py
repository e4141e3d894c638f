"""Neural spline flows for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..flows import Flow
from ..nn import SplineCoupling
from ..nn.arguments import whole
from ..nn.perceptron import MLP
from ..ops.rational_quadratic_spline import SplineForm


def nsf(
    features: int,
    *,
    transforms: int = 8,
    hidden: Sequence[int] = (64, 64),
    context: int = 0,
    bins: int = 8,
    bound: float = 3.0,
) -> Flow:
    """A neural spline flow with coupling layers, which keep the first and the last half of the features in turn.

    Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows" (2019), RQ-NSF (C), with a standard normal base. It
    starts as the identity.

    Args:
        features: size of x, at least 2.
        transforms: number of coupling layers.
        hidden: sizes of the hidden layers of each conditioner.
        context: size of the context vector on which the density depends; 0 for none.
        bins: of each spline.
        bound: splines act on [-bound, bound] and are the identity outside.

    Returns:
        A `Flow` over x of shape (B, features), with a context of shape (B, context) where that is not 0.

    Raises:
        ValueError: for a number out of range, naming it.

    Example:
        >>> import torch, flowkernels as fk
        >>> flow = fk.models.nsf(6)
        >>> flow.log_prob(torch.randn(10, 6)).shape, flow.sample(4).shape
        (torch.Size([10]), torch.Size([4, 6]))
    """
    whole("features", features, 2)
    whole("transforms", transforms, 1)
    whole("context", context, 0)
    for size in hidden:
        whole("hidden", size, 1)
    form = SplineForm(bins, bound)
    halves = features // 2, features - features // 2
    layers = []
    for i in range(transforms):
        kept = halves[i % 2]
        conditioner = MLP(kept, (features - kept) * form.parameters, hidden, context)
        _start_at_slope_one(conditioner, form)
        layers.append(SplineCoupling(conditioner, passive=kept if i % 2 == 0 else -kept, form=form))
    return Flow(layers, event_shape=(features,))


def _start_at_slope_one(conditioner: MLP, form: SplineForm) -> None:
    """Equal widths and heights, from zeros, are the identity where the derivative at every knot is 1."""
    bias: torch.Tensor = conditioner.layers[-1].bias  # type: ignore[assignment]
    with torch.no_grad():
        bias.view(-1, form.parameters)[:, 2 * form.bins :] = math.log(math.expm1(1 - form.min_derivative))
