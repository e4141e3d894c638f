"""What Triton kernels share that walk over a box: rows, and in each of them up to three dimensions, along which every
tensor has strides of its own.

A program handles a tile of rows x columns; a column is a position in the walk over a row that the plan prescribes.
Short rows share a program, a row of up to 16384 elements that is summed has one to itself, longer ones are cut into
chunks of 8192. These numbers depend on a row alone, so that its sum depends on neither the batch nor the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_launch import Kernel, cdiv, power_of_two

_WHOLE_ROW = 16384
_CHUNK = 8192


class View(NamedTuple):
    """Where the elements of one tensor lie: an offset, and strides of the row and the three event dimensions."""

    offset: object
    row: object
    outer: object
    middle: object
    inner: object


class Tile(NamedTuple):
    """How rows are cut."""

    rows: int
    columns: int  # of active elements
    passive_columns: int
    steps: int  # tiles of a row that one program handles, one after the other
    chunks: int  # programs for a row
    warps: int


# In the kernels K has a `tile`, and `wide`: whether offsets inside a row need 64 bits. Couplings have `active` and
# `passive` sizes.


@triton.jit
def across(view, column, SIZE: tl.constexpr):
    """Offsets of columns within a row."""
    if SIZE[0] == 1 and SIZE[1] == 1:
        return column * view.inner
    elif SIZE[0] == 1:
        return (column // SIZE[2]) * view.middle + (column % SIZE[2]) * view.inner
    else:
        outer = (column // (SIZE[1] * SIZE[2])) * view.outer
        return outer + (column // SIZE[2] % SIZE[1]) * view.middle + (column % SIZE[2]) * view.inner


@triton.jit
def at(pointer, view, row, column, SIZE: tl.constexpr):
    """Pointers to the elements of a tile; `row` is 64-bit."""
    return pointer + (view.offset + row * view.row) + across(view, column, SIZE)


@triton.jit
def row_numbers(tile, K: tl.constexpr):
    """The row numbers of a tile, down."""
    return (tl.cast(tile, tl.int64) * K.tile.rows + tl.arange(0, K.tile.rows))[:, None]


@triton.jit
def column_numbers(chunk, step, COLUMNS: tl.constexpr, K: tl.constexpr):
    """The column numbers of a tile, across."""
    if K.wide:
        chunk = chunk.to(tl.int64)
    return ((chunk * K.tile.steps + step) * COLUMNS + tl.arange(0, COLUMNS))[None, :]


@triton.jit
def _passive_columns(live, chunk, step, K: tl.constexpr):
    """The column numbers of a tile of passive elements, and which elements of it there are."""
    column = column_numbers(chunk, step, K.tile.passive_columns, K)
    return column, live & (column < K.passive[0] * K.passive[1] * K.passive[2])


@triton.jit
def load_passive(pointer, view, row, live, chunk, step, DTYPE: tl.constexpr, K: tl.constexpr):
    """A tile of the elements beside the active ones; 0 where there is no tensor."""
    size: tl.constexpr = K.passive
    column, ok = _passive_columns(live, chunk, step, K)
    if pointer is None or K.passive[2] == 0:
        return tl.zeros(ok.shape, DTYPE)
    else:
        return tl.load(at(pointer, view, row, column, size), ok)


@triton.jit
def store_passive(pointer, view, value, row, live, chunk, step, K: tl.constexpr):
    """Store what `load_passive` gave; it is loaded before anything is computed, so as not to wait twice."""
    if K.passive[2] > 0:
        size: tl.constexpr = K.passive
        column, ok = _passive_columns(live, chunk, step, K)
        tl.store(at(pointer, view, row, column, size), value, ok)


@triton.jit
def masked(mask_ptr, mask, column, inside, K: tl.constexpr):
    """Which columns the mask keeps."""
    size: tl.constexpr = K.active
    return tl.load(mask_ptr + mask.offset + across(mask, column, size), inside, other=0) != 0


@triton.jit(do_not_specialize=["outer", "kept"])
def sum_partials_kernel(
    partial_ptr,
    sum_ptr,
    outer,
    kept,
    INNER: tl.constexpr,
    KEPT_BLOCK: tl.constexpr,
    SUMMED_BLOCK: tl.constexpr,
):
    """Sum an (outer, kept, inner) array over its first and last dimension."""
    index = tl.program_id(0).to(tl.int64) * KEPT_BLOCK + tl.arange(0, KEPT_BLOCK)[None, :]
    total = tl.zeros((SUMMED_BLOCK, KEPT_BLOCK), partial_ptr.dtype.element_ty)
    count = tl.cast(outer, tl.int64) * INNER
    for start in range(0, count, SUMMED_BLOCK):
        k = start + tl.arange(0, SUMMED_BLOCK)[:, None]
        ok = (k < count) & (index < kept)
        total += tl.load(partial_ptr + ((k // INNER) * kept + index) * INNER + k % INNER, ok, other=0.0)
    tl.store(sum_ptr + index, tl.sum(total, 0)[None, :].to(sum_ptr.dtype.element_ty), index < kept)


def sum_partials(outer: int, kept: int, inner: int) -> Kernel:
    kept_block, summed_block = (8, 128) if inner == 1 else (1, 1024)
    return Kernel(sum_partials_kernel, cdiv(kept, kept_block), (outer, kept, inner, kept_block, summed_block), 4)


def tile(active: int, passive: int, itemsize: int, whole_row: bool) -> Tile:
    """How rows of so many active and passive elements are cut.

    `itemsize` is that of the narrowest tensor: a thread then reads at least 16 bytes of each. With `whole_row` a row of
    up to `_WHOLE_ROW` elements stays in one program, which can then sum it.
    """
    width = max(active, passive, 1)
    rows, columns, warps = 1, 1024, 4
    if width <= 512:
        rows, columns = max(1, (1024 if itemsize == 2 else 512) // power_of_two(width)), 512
    elif whole_row and width > 4096:
        columns, warps = 2048, 8
    own, beside = (min(columns, power_of_two(n)) for n in (active, passive))
    steps = cdiv(width if width <= _WHOLE_ROW else _CHUNK, columns) if whole_row else 1
    chunks = max(1, cdiv(active, steps * own), cdiv(passive, steps * beside))
    return Tile(rows, own, beside, steps, chunks, warps)


def view(plan: list[int] | None, size: list[int]) -> View | None:
    """A view whose numbers are constants of the kernel, so that the compiler sees alignment.

    A tensor whose rows interleave has strides that depend on the batch, for which kernels must not be compiled anew:
    there they are arguments.
    """
    return None if plan is None else View(*view_numbers(plan, size))


def view_numbers(plan: list[int], size: list[int]) -> list[Any]:
    """The numbers of `view`, whose tensor may have any number of dimensions."""
    last = sum((n - 1) * abs(stride) for n, stride in zip(size[1:], plan[2:]))
    interleaved = size[0] > 1 and 0 < abs(plan[1]) <= last
    return list(plan) if interleaved else list(map(tl.constexpr, plan))


def span(plan: list[int] | None, size: list[int]) -> int:
    """A number that no offset inside a row of a view exceeds, nor that of the column past its end."""
    return 0 if plan is None else sum(n * abs(stride) for n, stride in zip(size[1:], plan[2:]))
