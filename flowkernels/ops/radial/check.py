"""The argument checks of radial flows, one for eager calls, fakes and every backend."""

from __future__ import annotations

from torch import Tensor

from .. import stack


def check(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool) -> None:
    """Raise TypeError or ValueError for arguments that no backend takes."""
    stack.check(x, ("center", "alpha", "beta"), (center, alpha, beta))
    stack.check_like("alpha", alpha, center.shape[:-1])
    stack.check_like("beta", beta, center.shape[:-1])
