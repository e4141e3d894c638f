"""How far from float64 a result may be: one table, for `flowkernels check`, `flowkernels bench` and the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# In units of the dtype's epsilon. Half precision is computed in float32 and rounded once; float32 and float64 pass
# through several elementary functions of up to 4 units each.
_UNITS = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 16, torch.float64: 16}


def tolerance(dtype: torch.dtype, reduction_length: int = 1) -> float:
    """The largest `error` that a result of this dtype may have.

    It grows with the square root of the number of terms that each element sums: rounding errors of summands of order
    one are independent, and accumulation in several levels keeps its own below that.

    Raises:
        TypeError: for a dtype that no operation computes in.

    Example:
        >>> import torch
        >>> from flowkernels.tolerances import tolerance
        >>> tolerance(torch.float32, 1024) == 32 * tolerance(torch.float32)
        True
    """
    if dtype not in _UNITS:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _UNITS))}; got {dtype}")
    return _UNITS[dtype] * torch.finfo(dtype).eps * math.sqrt(max(1, reduction_length))


def error(value: Tensor, truth: Tensor) -> float:
    """The largest abs(value - truth) / (1 + abs(truth)); infinite where one is NaN, or infinite, and the other not.

    Example:
        >>> import torch
        >>> from flowkernels.tolerances import error
        >>> error(torch.tensor([1.0, 3.5]), torch.tensor([1.0, 3.0], dtype=torch.float64))
        0.125
    """
    if value.shape != truth.shape:
        raise ValueError(f"value has shape {tuple(value.shape)} and truth {tuple(truth.shape)}")
    if truth.numel() == 0:
        return 0.0
    value, truth = value.detach().double(), truth.detach().double()
    same = (value == truth) | (value.isnan() & truth.isnan())
    relative = (value - truth).abs_().div_(truth.abs().add_(1)).masked_fill_(same, 0.0)
    return torch.nan_to_num(relative, nan=math.inf, posinf=math.inf).max().item()
