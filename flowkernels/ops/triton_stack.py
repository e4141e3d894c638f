"""What planar and radial flows have in common in Triton: kernels that apply K layers in one pass, and their plans.

A program has a tile of whole rows in registers and goes through the layers; an op contributes the formulas of a layer
as functions:

    LAYER(parameters, row, live, column, k, K)           -> what the others take as `layer`
    APPLY(z, layer, K), UNDO(z, layer, K)                -> (z, m, q) with the determinant m^(D - 1) q, m None for 1
    BACKWARD(z, g, grad_log_det, layer, K)               -> (z after the layer, g before it, gradients for each row)
    FINISH(gradients, parameters, row, live, column, k, K) -> gradients of the parameters from those for each row,
                                                            or from their sums over rows

Gradients for each row are one or two vectors and two numbers (see `Constants.vectors`). Backward goes through the
layers of an inverse stack in the order in which they have to be undone: from its output, layer 0 first, so every
layer's input is at hand. For a forward stack they are recomputed from x and kept in a workspace; going back by
subtraction would lose digits where layers move points far.

`parameters` is a tuple of three pointers, that of what a first launch has made of them or None, and the three strides
from row to row.

Gradients of shared parameters are summed over the rows of a tile, the tiles of a program and the programs, each in a
fixed order. How rows are cut depends on D alone, the number of programs also on B and K, nothing on the device.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_math as tm
from .native import DTYPES
from .triton_launch import Kernel, cdiv, power_of_two

_ITEMSIZES = tuple(dtype.itemsize for dtype in DTYPES)
_WIDEST = 2**15  # bytes of the longest row that one program can hold; longer ones go layer by layer, through ATen
_MOST_PROGRAMS = 256  # that sum gradients or keep inputs of layers, each for many rows
_WORKSPACE = 2**26  # bytes, at most, for either purpose
_PREPARED = 6144  # shared numbers in the vectors of a stack, above which preparing them is worth a launch
_SUMMED = 2048  # numbers that are summed at a time in the last kernel


class Tile(NamedTuple):
    """How tensors of a number of features are cut."""

    rows: int
    columns: int  # the features, and what is missing to a power of two
    warps: int


class Constants(NamedTuple):
    """What a kernel is compiled for, besides dtypes and strides of rows."""

    features: int
    tile: Tile
    per_example: bool
    inverse: bool
    vectors: int  # among the parameters of a layer
    options: tuple


class Matrix(NamedTuple):
    """Strides of a (B, D) tensor."""

    row: object
    column: object


@triton.jit
def _tile(number, rows, K: tl.constexpr):
    """The first row of a tile; the numbers of its rows, down; which of them there are; those of columns, across."""
    first = tl.cast(number, tl.int64) * K.tile.rows
    down = tl.arange(0, K.tile.rows)[:, None]
    there = tl.minimum(rows - first, K.tile.rows).to(tl.int32)
    return first, first + down, down < there, tl.arange(0, K.tile.columns)[None, :]


@triton.jit
def _load(pointer, strides, row, live, column, DTYPE: tl.constexpr, K: tl.constexpr):
    """A tile of a (B, D) tensor, 0 outside of it and where there is no tensor."""
    if pointer is None:
        return tl.zeros((K.tile.rows, K.tile.columns), DTYPE)
    else:
        at = row * strides.row + column.to(tl.int64) * strides.column
        return tl.load(pointer + at, live & (column < K.features), other=0.0).to(DTYPE)


@triton.jit
def _store(pointer, value, first, live, column, K: tl.constexpr):
    """Store a tile of a contiguous (B, D) tensor."""
    at = pointer + first * K.features + (tl.arange(0, K.tile.rows)[:, None] * K.features + column)
    tl.store(at, value.to(pointer.dtype.element_ty), live & (column < K.features))


@triton.jit
def load_vector(pointer, stride, row, live, column, k, K: tl.constexpr):
    """D numbers of layer k for each row, or one row of them where they are shared."""
    inside = column < K.features
    if K.per_example:
        return tl.load(pointer + row * stride + (k * K.features + column), live & inside, other=0.0)
    else:
        return tl.load(pointer + (k * K.features + column), inside, other=0.0)


@triton.jit
def load_number(pointer, stride, row, live, k, K: tl.constexpr):
    """The number of layer k for each row, or one where it is shared."""
    if K.per_example:
        return tl.load(pointer + row * stride + k, live, other=0.0)
    else:
        return tl.load(pointer + k + tl.zeros((1, 1), tl.int32))


@triton.jit
def _store_vector(pointer, value, row, live, column, k, depth, K: tl.constexpr):
    at = k * K.features + column
    if K.per_example:
        tl.store(pointer + row * depth * K.features + at, value, live & (column < K.features))
    else:
        tl.store(pointer + at, value, column < K.features)


@triton.jit
def _store_number(pointer, value, row, live, k, depth, K: tl.constexpr):
    if K.per_example:
        tl.store(pointer + row * depth + k, value, live)
    else:
        tl.store(pointer + k + tl.zeros((1, 1), tl.int32), value)


@triton.jit
def dot(a, b):
    """The dot product of each row."""
    return tl.sum(a * b, 1, keep_dims=True)


@triton.jit
def stack_forward(
    x_ptr,
    parameters,
    y_ptr,
    log_det_ptr,
    rows,
    depth,
    x_strides,
    K: tl.constexpr,
    LAYER: tl.constexpr,
    APPLY: tl.constexpr,
    UNDO: tl.constexpr,
):
    """A tile of y and log_det. Factors of the determinant are multiplied; of the product one logarithm is taken."""
    dtype: tl.constexpr = log_det_ptr.dtype.element_ty
    first, row, live, column = _tile(tl.program_id(0), rows, K)
    z = _load(x_ptr, x_strides, row, live, column, dtype, K)
    many = tl.full((K.tile.rows, 1), 1, dtype)
    once = tl.full((K.tile.rows, 1), 1, dtype)
    many_exponent = tl.zeros((K.tile.rows, 1), tl.int64 if dtype == tl.float64 else tl.int32)
    once_exponent = many_exponent
    for i in range(depth):
        if K.inverse:
            layer = LAYER(parameters, row, live, column, depth - 1 - i, K)
            z, m, q = UNDO(z, layer, K)
        else:
            layer = LAYER(parameters, row, live, column, i, K)
            z, m, q = APPLY(z, layer, K)
        once, once_exponent = tm.scale_apart(once * q, once_exponent)
        if m is not None:
            many, many_exponent = tm.scale_apart(many * m, many_exponent)
    log_det = tm.log_scaled(once, once_exponent) + (K.features - 1) * tm.log_scaled(many, many_exponent)
    _store(y_ptr, z, first, live, column, K)
    tl.store(log_det_ptr + row, -log_det if K.inverse else log_det, live)


@triton.jit
def _add_over_rows(pointer, value, live, again):
    """Add the sum of `value` over rows to what is there, if anything has been written before."""
    total = tl.sum(tl.where(live, value, 0.0), 0)[None]
    tl.store(pointer, total + tl.load(pointer, again, other=0.0))


@triton.jit
def _hand_over(
    gradients,
    parameters,
    grads,
    partials,
    row,
    live,
    column,
    k,
    depth,
    again,
    K: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Store what belongs to a row, or add what is shared to the program's partial sums."""
    vectors_ptr, numbers_ptr = partials
    if K.per_example:
        if grads[0] is not None:
            finished = FINISH(gradients, parameters, row, live, column, k, K)
            _store_gradients(grads, finished, row, live, column, k, depth, K)
    elif vectors_ptr is not None:
        layer = tl.program_id(0).to(tl.int64) * depth + k
        pair = tl.arange(0, 2)[None, None, :]
        numbers = tl.join(gradients[2], gradients[3])  # in one sum, for each takes two barriers
        _add_over_rows(numbers_ptr + layer * 2 + pair, numbers, live[:, :, None], again[:, :, None])
        if K.vectors == 2:
            at = vectors_ptr + layer * (2 * K.tile.columns) + (2 * column[:, :, None] + pair)
            _add_over_rows(at, tl.join(gradients[0], gradients[1]), live[:, :, None], again[:, :, None])
        else:
            at = vectors_ptr + layer * K.tile.columns + column
            _add_over_rows(at, gradients[0], live, again)


@triton.jit
def _store_gradients(grads, finished, row, live, column, k, depth, K: tl.constexpr):
    _store_vector(grads[0], finished[0], row, live, column, k, depth, K)
    if K.vectors == 2:
        _store_vector(grads[1], finished[1], row, live, column, k, depth, K)
    else:
        _store_number(grads[1], finished[1], row, live, k, depth, K)
    _store_number(grads[2], finished[2], row, live, k, depth, K)


@triton.jit
def _one_pass(
    z,
    g,
    grad_log_det,
    parameters,
    grads,
    partials,
    row,
    live,
    column,
    depth,
    again,
    K: tl.constexpr,
    LAYER: tl.constexpr,
    BACKWARD: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Backward through layers whose inputs are found in the order in which gradients need them."""
    for k in range(depth):
        layer = LAYER(parameters, row, live, column, k, K)
        z, g, gradients = BACKWARD(z, g, grad_log_det, layer, K)
        _hand_over(gradients, parameters, grads, partials, row, live, column, k, depth, again, K, FINISH)
    return g


@triton.jit
def _segment_by_segment(
    z,
    g,
    grad_log_det,
    parameters,
    grads,
    partials,
    kept_ptr,
    segment,
    row,
    live,
    column,
    depth,
    again,
    K: tl.constexpr,
    LAYER: tl.constexpr,
    APPLY: tl.constexpr,
    BACKWARD: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Backward through a forward stack. A first pass keeps the input of every segment of layers, a second pass those of
    the layers of one segment at a time."""
    size: tl.constexpr = K.tile.rows * K.tile.columns
    segments = tl.cdiv(depth, segment)
    element = tl.arange(0, K.tile.rows)[:, None] * K.tile.columns + column
    starts_ptr = kept_ptr + tl.program_id(0).to(tl.int64) * (segments + segment) * size + element
    inputs_ptr = starts_ptr + segments.to(tl.int64) * size
    for s in range(segments - 1):
        tl.store(starts_ptr + s * size, z)
        for k in range(s * segment, (s + 1) * segment):
            layer = LAYER(parameters, row, live, column, k, K)
            z, _, _ = APPLY(z, layer, K)
    tl.store(starts_ptr + (segments - 1) * size, z)
    for s in range(segments):
        begin = (segments - 1 - s) * segment
        count = tl.minimum(segment, depth - begin)
        tl.debug_barrier()
        z = tl.load(starts_ptr + (segments - 1 - s) * size)
        for i in range(count):
            tl.store(inputs_ptr + i * size, z)
            layer = LAYER(parameters, row, live, column, begin + i, K)
            z, _, _ = APPLY(z, layer, K)
        tl.debug_barrier()
        for i in range(count):
            k = begin + count - 1 - i
            z = tl.load(inputs_ptr + (count - 1 - i) * size)
            layer = LAYER(parameters, row, live, column, k, K)
            _, g, gradients = BACKWARD(z, g, grad_log_det, layer, K)
            _hand_over(gradients, parameters, grads, partials, row, live, column, k, depth, again, K, FINISH)
    tl.debug_barrier()
    return g


@triton.jit
def stack_backward(
    grad_y_ptr,
    grad_log_det_ptr,
    saved_ptr,
    parameters,
    grad_x_ptr,
    grads,
    partials,
    kept_ptr,
    rows,
    depth,
    segment,
    tiles,  # of a program
    saved_strides,
    grad_y_strides,
    grad_log_det_stride,
    K: tl.constexpr,
    LAYER: tl.constexpr,
    APPLY: tl.constexpr,
    BACKWARD: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Gradients of a program's tiles, one after the other."""
    dtype: tl.constexpr = tl.float64 if saved_ptr.dtype.element_ty == tl.float64 else tl.float32
    begin = tl.program_id(0) * tiles
    for number in range(begin, tl.minimum(begin + tiles, tl.cdiv(rows, K.tile.rows))):
        first, row, live, column = _tile(number, rows, K)
        again = tl.zeros((1, 1), tl.int32) + number > begin
        z = _load(saved_ptr, saved_strides, row, live, column, dtype, K)
        g = _load(grad_y_ptr, grad_y_strides, row, live, column, dtype, K)
        grad_log_det = tl.zeros((K.tile.rows, 1), dtype)
        if grad_log_det_ptr is not None:
            grad_log_det += tl.load(grad_log_det_ptr + row * grad_log_det_stride, live, other=0.0).to(dtype)
        if kept_ptr is None:
            g = _one_pass(
                z, g, grad_log_det, parameters, grads, partials, row, live, column, depth, again, K, LAYER, BACKWARD,
                FINISH,
            )  # fmt: skip
        else:
            g = _segment_by_segment(
                z, g, grad_log_det, parameters, grads, partials, kept_ptr, segment, row, live, column, depth, again, K,
                LAYER, APPLY, BACKWARD, FINISH,
            )  # fmt: skip
        if grad_x_ptr is not None:
            _store(grad_x_ptr, g, first, live, column, K)


@triton.jit
def _sum_partials(pointer, stride, programs, BLOCK: tl.constexpr):
    """The sum over programs of what `pointer`, with two dimensions after that of programs, points to."""
    total = tl.zeros((BLOCK, pointer.shape[1], pointer.shape[2]), pointer.dtype.element_ty)
    for start in range(0, programs, BLOCK):
        program = (start + tl.arange(0, BLOCK))[:, None, None]
        total += tl.load(pointer + program.to(tl.int64) * stride, program < programs, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def stack_finish(
    partials, parameters, grads, programs, depth, K: tl.constexpr, BLOCK: tl.constexpr, FINISH: tl.constexpr
):
    """The gradients of the shared parameters of one layer from the partial sums of all programs."""
    vectors_ptr, numbers_ptr = partials
    k = tl.program_id(0)
    column = tl.arange(0, K.tile.columns)[None, :]
    pair = tl.arange(0, 2)[None, None, :]
    third, fourth = tl.split(_sum_partials(numbers_ptr + k * 2 + pair, depth * 2, programs, BLOCK))
    size: tl.constexpr = K.vectors * K.tile.columns
    if K.vectors == 2:
        at = vectors_ptr + k * size + (2 * column[:, :, None] + pair)
        first, second = tl.split(_sum_partials(at, depth * size, programs, BLOCK))
        gradients = (first[None, :], second[None, :], third[:, None], fourth[:, None])
    else:
        first = _sum_partials(vectors_ptr + k * size + column[:, None, :], depth * size, programs, BLOCK)
        gradients = (first, None, third[:, None], fourth[:, None])
    finished = FINISH(gradients, parameters, 0, column >= 0, column, k, K)
    _store_gradients(grads, finished, 0, column >= 0, column, k, depth, K)


def tile(features: int, itemsize: int) -> Tile:
    """How rows of so many features are cut, whose numbers have `itemsize` bytes.

    A thread has 8 features up to 4096, of one or two rows. Of 16-bit numbers it has 4 at first, because loads of 8 in a
    row and of 4 parameters would have to be brought together in every layer; of float64 too, because what is found of
    shared parameters is found for every row. There are fewer rows than threads, lest what there is once a row be laid
    out in another way, unless a thread has whole rows anyway.
    """
    columns = power_of_two(features)
    rows = 256 if columns <= 4 else max(1, min(64, (1024 if itemsize == 4 else 512) // columns))
    return Tile(rows, columns, min(16, max(4, columns // 256)))


def segments(depth: int, tile_bytes: int, programs: int) -> tuple[int, int]:
    """How many layers there are in a segment, and how many tiles a program keeps.

    Every layer's input is kept where that fits the workspace, else as few as possible, for twice the work.
    """
    segment = depth if (depth + 1) * tile_bytes * programs <= _WORKSPACE else math.isqrt(depth - 1) + 1
    return segment, cdiv(depth, segment) + segment


class Op(NamedTuple):
    """What an op contributes to plans."""

    vectors: int
    forward: Any
    backward: Any
    finish: Any
    prepare: Any  # a kernel that makes `first` and `extra` of a stack's first two parameters, or None
    reference: ModuleType


class _Stack:
    """The common part of a plan."""

    def __init__(
        self,
        op: Op,
        *,
        x_dtype: int,
        rows: int,
        features: int,
        depth: int,
        per_example: bool,
        parameter_strides: list[int],
        inverse: bool,
        **options: Any,
    ) -> None:
        self.op, self.rows, self.features, self.depth, self.per_example = op, rows, features, depth, per_example
        self.tile = tile(features, _ITEMSIZES[x_dtype])
        self.tiles = cdiv(rows, self.tile.rows)
        self.dtype = torch.float64 if x_dtype == DTYPES[torch.float64] else torch.float32
        self.wide = features * self.dtype.itemsize > _WIDEST
        self.strides = tuple(map(tl.constexpr, parameter_strides))
        self.constants = Constants(features, self.tile, per_example, inverse, op.vectors, tuple(options.values()))
        self.options = {**options, "inverse": inverse}
        prepares = op.prepare is not None and not per_example and depth * features > _PREPARED
        self._prepare = self.kernel(op.prepare, depth, ()) if prepares else None

    def kernel(self, kernel: Any, programs: int, arguments: tuple, no_spills: bool = False) -> Kernel:
        return Kernel(kernel, programs, (*arguments, self.constants), self.tile.warps, no_spills)

    def prepared(self, device: torch.device, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._prepare is None:
            return first, None
        made, extra = self.empty(device, self.depth, self.features), self.empty(device, self.depth)
        self._prepare(device, first, second, made, extra)
        return made, extra

    def empty(self, device: torch.device, *size: int) -> Tensor:
        return torch.empty(*size, dtype=self.dtype, device=device)


def _matrix(strides: list[int], stack: _Stack) -> Matrix:
    """Strides as constants of the kernel, so that the compiler sees alignment. Those of rows that interleave depend on
    the batch, for which kernels must not be compiled anew: they are arguments."""
    row, column = strides[0], strides[1] if stack.features > 1 else 1
    if stack.rows > 1 and 0 < row <= (stack.features - 1) * column:
        return Matrix(row, column)
    return Matrix(tl.constexpr(row), tl.constexpr(column))


class Forward:
    """A forward plan: one launch, after one that prepares the parameters of large stacks."""

    def __init__(self, op: Op, *, x_strides: list[int], **plan: Any) -> None:
        self.common = stack = _Stack(op, **plan)
        arguments = (stack.rows, stack.depth, stack.strides, _matrix(x_strides, stack))
        self.main = stack.kernel(op.forward, stack.tiles, arguments)

    def __call__(
        self, device: torch.device, x: Tensor, first: Tensor, second: Tensor, third: Tensor, y: Tensor, log_det: Tensor
    ) -> None:
        stack = self.common
        if stack.wide:
            for made, found in zip((y, log_det), stack.op.reference.forward(x, first, second, third, **stack.options)):
                made.copy_(found)
            return
        first, extra = stack.prepared(device, first, second)
        self.main(device, x, first, second, third, extra, y, log_det)


class Backward:
    """A backward plan: one launch, and one more that finishes the gradients of shared parameters."""

    def __init__(
        self,
        op: Op,
        *,
        saved_strides: list[int],
        grad_y_strides: list[int],
        grad_log_det_stride: int,
        of_parameters: bool,
        **plan: Any,
    ) -> None:
        self.common = stack = _Stack(op, **plan)
        tile_bytes = math.prod(stack.tile[:2]) * stack.dtype.itemsize
        self.sums = of_parameters and not stack.per_example
        self.vectors = stack.depth * op.vectors * stack.tile.columns
        keeps = stack.depth > 1 and not stack.options["inverse"]
        programs = min(stack.tiles, _MOST_PROGRAMS) if keeps or self.sums else stack.tiles
        segment, self.kept = segments(stack.depth, tile_bytes, programs) if keeps else (1, 0)
        for needed in (self.kept * tile_bytes, self.sums * self.vectors * stack.dtype.itemsize):
            programs = min(programs, max(1, _WORKSPACE // max(needed, 1)))
        tiles = cdiv(stack.tiles, max(programs, 1))
        self.programs = cdiv(stack.tiles, max(tiles, 1))
        matrices = (_matrix(saved_strides, stack), _matrix(grad_y_strides, stack), grad_log_det_stride)
        arguments = (stack.rows, stack.depth, segment, tiles, stack.strides, *matrices)
        self.main = stack.kernel(op.backward, self.programs, arguments, no_spills=True)
        block = max(1, _SUMMED // stack.tile.columns)
        self.finish = stack.kernel(op.finish, stack.depth, (self.programs, stack.depth, block))

    def __call__(
        self,
        device: torch.device,
        grad_y: Tensor | None,
        grad_log_det: Tensor | None,
        saved: Tensor,
        first: Tensor,
        second: Tensor,
        third: Tensor,
        grad_x: Tensor | None,
        *grads: Tensor | None,
    ) -> None:
        stack = self.common
        if stack.wide:
            tensors = (grad_y, grad_log_det, saved, first, second, third)
            for made, found in zip((grad_x, *grads), stack.op.reference.backward(*tensors, **stack.options)):
                if made is not None:
                    made.copy_(found)
            return
        vectors = stack.empty(device, self.programs * self.vectors) if self.sums else None
        numbers = stack.empty(device, self.programs * stack.depth * 2) if self.sums else None
        kept = stack.empty(device, self.programs * self.kept * math.prod(stack.tile[:2])) if self.kept else None
        made, extra = stack.prepared(device, first, second)
        self.main(
            device, grad_y, grad_log_det, saved, made, second, third, extra, grad_x, *grads, vectors, numbers, kept
        )  # fmt: skip
        if self.sums:
            self.finish(device, vectors, numbers, first, second, third, *grads)
