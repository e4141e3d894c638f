"""The argument checks of split's log-density, one for eager calls, fakes and every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import DTYPES

# By whether x is float64.
_PRIOR_DTYPES = (
    (torch.float32, torch.float16, torch.bfloat16),
    (torch.float64, torch.float32),
)


def check(out: Tensor, mean: Tensor | None, log_std: Tensor | None) -> None:
    """Raise TypeError or ValueError for arguments that no backend takes."""
    if out.dtype not in DTYPES:
        raise TypeError(f"x has dtype {out.dtype}; supported are {', '.join(map(str, DTYPES))}")
    if out.dim() == 0:
        raise ValueError("x must have shape (B, ...); got a scalar")
    for name, value in (("mean", mean), ("log_std", log_std)):
        if value is None:
            continue
        if value.dtype not in _PRIOR_DTYPES[out.dtype == torch.float64]:
            supported = ", ".join(map(str, _PRIOR_DTYPES[out.dtype == torch.float64]))
            raise TypeError(f"beside x in {out.dtype}, {name} has one of {supported}; got {value.dtype}")
        if value.device != out.device:
            raise TypeError(f"{name} is on {value.device} and x on {out.device}; they must be on one device")
        if value.shape != out.shape:
            raise ValueError(
                f"{name} must have the shape of the scored half, {tuple(out.shape)}; got {tuple(value.shape)}"
            )
    if mean is not None and log_std is not None and mean.dtype != log_std.dtype:
        raise TypeError(f"mean and log_std must have one dtype; got {mean.dtype} and {log_std.dtype}")
