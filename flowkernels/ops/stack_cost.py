"""Launches and bytes of planar and radial flows on a GPU, by formula. Rows move once for all layers: with D features of
one size, forward moves 2D + 1 of them a row and backward 3D + 1. Backward of a forward stack also keeps the inputs of a
few layers in a workspace, and gradients of parameters that rows share are summed block by block.
"""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from .cost import Cost, distinct_bytes
from .layout import accumulation_dtype

# As in csrc/cuda/stack.cuh and stack_launch.cuh.
THREADS = 256
SEGMENT = 16
MOST_OF_WARP = 8
MOST_PARTIALS = 256
WORKSPACE_LIMIT = 2**26
TABLE_BYTES = 48 * 1024
TABLE_DEPTH = 256


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What the kernels of an op keep, in numbers; as in its class in csrc/cuda.

    Args:
        vectors: gradients of a layer that have one number per feature.
        numbers: its other gradients.
        record: what backward keeps of a layer of a forward stack, beside its input.
        needs_input: whether it keeps that input also where parameters need no gradient.
        table: what a launch of its own finds of a layer where a stack is large.
    """

    vectors: int
    numbers: int
    record: int
    needs_input: bool
    table: int


def _mapping(features: int) -> tuple[int, int]:
    """How many threads share a row, and how many features each has."""
    block = features > 32 * MOST_OF_WARP
    lanes = THREADS if block else _power_of_two(-(-features // MOST_OF_WARP))
    return lanes, max(4 if block else 2, _power_of_two(-(-features // lanes)))


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _table(kernel: Kernel, x: Tensor, parameters: tuple) -> int:
    """Bytes of the table."""
    first, depth = parameters[0], parameters[2].shape[-1]
    many = 8 * depth * x.shape[1] > TABLE_BYTES or depth > TABLE_DEPTH
    return kernel.table * depth * first.element_size() if many and first.dim() == 2 and x.shape[0] > 0 else 0


def forward(kernel: Kernel, x: Tensor, parameters: tuple[Tensor, Tensor, Tensor]) -> Cost:
    """Of one forward or inverse pass."""
    read = distinct_bytes(x) + sum(map(distinct_bytes, parameters))
    written = x.numel() * x.element_size() + x.shape[0] * accumulation_dtype(x.dtype).itemsize
    if x.shape[0] == 0:
        return Cost(0, 0, 0, 0)
    table = _table(kernel, x, parameters)
    again = sum(map(distinct_bytes, parameters[: kernel.vectors])) if table else 0
    return Cost(1 + (table > 0), read + table + again, written + table, read + written)


def backward(
    kernel: Kernel,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    inverse: bool,
    wanted: tuple[bool, ...],
) -> Cost:
    """Of the gradients that `wanted` names: of x, and of the parameters, which are computed all or none."""
    of_parameters = any(wanted[1:])
    inputs = sum(map(distinct_bytes, (grad_y, grad_log_det, saved, *parameters))) if saved.shape[0] else 0
    outputs = saved.numel() * saved.element_size() if wanted[0] else 0
    grads = sum(p.numel() * p.element_size() for p in parameters) if of_parameters else 0
    sums = of_parameters and parameters[0].dim() == 2
    table = _table(kernel, saved, parameters)
    again = sum(map(distinct_bytes, parameters[: kernel.vectors])) if table else 0
    records, blocks, tiles = _blocks(kernel, saved, parameters, inverse, of_parameters, sums)
    kept = records * blocks
    read, written = inputs + table + again + kept, outputs + grads + table + kept
    launches = (table > 0) + (saved.shape[0] > 0)
    if sums:
        partial = _partial(kernel, parameters)
        written += blocks * partial
        read += (min(blocks, tiles - blocks) + blocks) * partial  # of blocks that have a second tile; at the end
        read += _finish(kernel, parameters)
        launches += parameters[2].shape[-1] > 0
    return Cost(launches, read, written, inputs + outputs + grads)


def _partial(kernel: Kernel, parameters: tuple) -> int:
    """Bytes of a block's sums."""
    features, depth = parameters[0].shape[-1], parameters[2].shape[-1]
    return depth * (kernel.vectors * features + kernel.numbers) * parameters[0].element_size()


def _finish(kernel: Kernel, parameters: tuple) -> int:
    """Bytes of the parameters that the last launch reads: planar's vectors, and its sums of them; radial's beta."""
    if kernel.vectors == 1:
        return distinct_bytes(parameters[2])
    return 2 * sum(map(distinct_bytes, parameters[: kernel.vectors]))


def _blocks(
    kernel: Kernel, x: Tensor, parameters: tuple, inverse: bool, of_parameters: bool, sums: bool
) -> tuple[int, int, int]:
    """Bytes that a block keeps of layers, the number of blocks, and of the groups of rows that they walk through."""
    depth, size = parameters[2].shape[-1], parameters[0].element_size()
    lanes, per_lane = _mapping(x.shape[1])
    tiles = math.ceil(x.shape[0] * lanes / THREADS)
    segment, checkpoints = min(depth, SEGMENT), max(0, (depth - 1) // SEGMENT)
    width = THREADS * size
    reserved = 0 if inverse else (segment * (per_lane + kernel.record) + checkpoints * per_lane) * width
    padded = -(-(kernel.vectors * x.shape[1] + kernel.numbers) // 4) * 4 * size
    blocks = min(tiles, max(1, WORKSPACE_LIMIT // max(1, reserved + sums * depth * padded)))
    if sums:
        blocks = min(blocks, MOST_PARTIALS)
    with_input = kernel.needs_input or of_parameters
    return reserved - (0 if inverse or with_input else segment * per_lane * width), blocks, tiles
