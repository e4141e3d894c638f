"""Allocation rules and stride arithmetic that every op and every backend share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_EVENT_DIMS = 3  # as kDims in csrc/flow/plan.h


class TooManyDimensions(Exception):
    """The strides do not fit the dimensions that native plans have; contiguous inputs always do."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an op on x of this dtype computes and sums in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_rows(t: Tensor) -> Tensor:
    """The sum over each row of a batch."""
    return t.unsqueeze(-1).flatten(1).sum(1)


def split_passive(x: Tensor, passive: int) -> tuple[Tensor, Tensor]:
    """The views (kept, active) of x: `passive` counts kept channels from the front, or from the back if negative."""
    channels = x.shape[1]
    if passive >= 0:
        return x.narrow(1, 0, passive), x.narrow(1, passive, channels - passive)
    return x.narrow(1, channels + passive, -passive), x.narrow(1, 0, channels + passive)


def merge_passive(kept: Tensor, active: Tensor, passive: int) -> Tensor:
    """What `split_passive` took apart."""
    return torch.cat((kept, active) if passive >= 0 else (active, kept), dim=1)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where x is channels_last and not contiguous, else contiguous."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if x.dim() == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def strides_of(shape: Sequence[int], kept: torch.memory_format) -> tuple[int, ...]:
    """The strides that torch chooses for a tensor of a shape in a memory format."""
    return torch.empty(shape, device="meta", memory_format=kept).stride()


def allocate_like(x: Tensor) -> Tensor:
    """An uninitialised tensor of x's shape and dtype in the layout that outputs have, whatever x's strides."""
    if x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=memory_format(x))


def allocate_log_det(x: Tensor) -> Tensor:
    """An uninitialised log-determinant for a batch x."""
    if x.dtype is torch.float32:  # to name the dtype takes time
        return x.new_empty(x.shape[0])
    return x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype))


def coalesce(sizes: Sequence[int], strides: Sequence[Sequence[int]], order: int) -> tuple[list[int], list[list[int]]]:
    """Sort and merge dimensions that several tensors share.

    Args:
        sizes: sizes of the dimensions.
        strides: for each tensor, its stride along each dimension.
        order: the tensor whose strides decide the order, outermost first.

    Returns:
        Exactly `MAX_EVENT_DIMS` sizes (leading ones where fewer are needed) and the strides of each tensor.

    Raises:
        TooManyDimensions: if more dimensions than that are left.
    """
    dims = [d for d in range(len(sizes)) if sizes[d] != 1]
    dims.sort(key=lambda d: (-strides[order][d], d))
    merged_sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for d in dims:
        if merged_sizes and all(m[-1] == s[d] * sizes[d] for m, s in zip(merged, strides)):
            merged_sizes[-1] *= sizes[d]
            for m, s in zip(merged, strides):
                m[-1] = s[d]
        else:
            merged_sizes.append(sizes[d])
            for m, s in zip(merged, strides):
                m.append(s[d])
    missing = MAX_EVENT_DIMS - len(merged_sizes)
    if missing < 0:
        raise TooManyDimensions
    return [1] * missing + merged_sizes, [[0] * missing + m for m in merged]
