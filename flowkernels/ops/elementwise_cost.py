"""Launches and bytes of elementwise ops on a GPU, by formula: whatever is read or written moves once."""

from __future__ import annotations

import math

from torch import Tensor

from .cost import CHUNK, LONGEST_ROW, Cost, distinct_bytes
from .layout import accumulation_dtype


def mapped(inputs: tuple[Tensor | None, ...], written: int) -> Cost:
    """Of one pass that reads tensors, the first of which is never absent, and writes so many bytes."""
    if inputs[0] is None or inputs[0].numel() == 0:
        return Cost(0, 0, 0, 0)
    read = sum(map(distinct_bytes, inputs))
    return Cost(1, read, written, read + written)


def summed(inputs: tuple[Tensor | None, ...], x: Tensor, written: int) -> Cost:
    """Of one that also sums over each row of x, in a second launch where rows are cut into chunks."""
    read, length = sum(map(distinct_bytes, inputs)), math.prod(x.shape[1:])
    chunks = 1 if length <= LONGEST_ROW else -(-length // CHUNK)
    sums = x.shape[0] * accumulation_dtype(x.dtype).itemsize
    partial = chunks * sums if chunks > 1 else 0
    launches = 0 if x.shape[0] == 0 else 1 + (chunks > 1)
    return Cost(launches, read + partial, written + sums + partial, read + written + sums)


def dense_bytes(tensor: Tensor) -> int:
    """Of a tensor of this shape and dtype with all its elements, as outputs are."""
    return tensor.numel() * tensor.element_size()
