"""The argument checks of planar flows, one for eager calls, fakes and every backend."""

from __future__ import annotations

from torch import Tensor

from .. import stack

ACTIVATIONS = ("tanh", "leaky_relu")


def check(x: Tensor, u: Tensor, w: Tensor, b: Tensor, activation: str, negative_slope: float, inverse: bool) -> None:
    """Raise TypeError or ValueError for arguments that no backend takes."""
    stack.check(x, ("u", "w", "b"), (u, w, b))
    stack.check_like("w", w, u.shape)
    stack.check_like("b", b, u.shape[:-1])
    check_activation(activation, negative_slope)


def check_activation(activation: str, negative_slope: float) -> None:
    """Raise ValueError for an activation that there is not, or a slope that could fold space."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if not 0 <= negative_slope <= 1:
        raise ValueError(f"negative_slope must be between 0 and 1; got {negative_slope}")
