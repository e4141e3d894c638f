"""Ops that map the elements of a few tensors of one shape, in Triton: one launch, and one more where rows are summed
that are too long for a program.

An op contributes its formula as a function,

    FORMULA(inputs, per_row, NUMBERS) -> (outputs, term)

whose inputs are three tiles, None for those that are absent, and a number for each row, 0 where there are none. Its
outputs are three tiles, and the term is what is summed over each row; either may be None, and what no tensor takes the
compiler leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_box
from .elementwise import ELEMENT_DTYPES, OPERANDS
from .triton_box import Tile, View, at, column_numbers, row_numbers
from .triton_launch import Kernel, cdiv

_ITEMSIZES = tuple(dtype.itemsize for dtype in ELEMENT_DTYPES)


class Views(NamedTuple):
    inputs: tuple[View | None, ...]
    outputs: tuple[View | None, ...]
    row_stride: object  # of the numbers per row


class Constants(NamedTuple):
    """What a kernel is compiled for, besides dtypes, strides and the formula."""

    numbers: tuple  # of the op: as arguments they would be float32 in a float64 kernel
    tile: Tile
    size: tuple[int, ...]
    wide: bool  # whether offsets inside a row need 64 bits


@triton.jit
def _load(pointer, view, row, column, ok, DTYPE: tl.constexpr, K: tl.constexpr):
    size: tl.constexpr = K.size
    return tl.load(at(pointer, view, row, column, size), ok).to(DTYPE)


@triton.jit
def _store(pointer, view, value, row, column, ok, K: tl.constexpr):
    if pointer is not None:
        size: tl.constexpr = K.size
        dtype: tl.constexpr = pointer.dtype.element_ty
        if value.dtype == tl.float64 and dtype == tl.bfloat16:  # which the interpreter cannot convert
            value = value.to(tl.float32)
        tl.store(at(pointer, view, row, column, size), value.to(dtype), ok)


@triton.jit(do_not_specialize=["rows"], repr=lambda made: made.constants["FORMULA"].__name__ + "_kernel")
def elementwise_kernel(
    input_0_ptr,
    input_1_ptr,
    input_2_ptr,
    per_row_ptr,
    output_0_ptr,
    output_1_ptr,
    output_2_ptr,
    sums_ptr,  # one value per row and chunk
    rows,
    views,
    K: tl.constexpr,
    FORMULA: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if input_0_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile: tl.constexpr = K.tile
    numbers: tl.constexpr = K.numbers
    columns: tl.constexpr = K.size[0] * K.size[1] * K.size[2]
    chunk = tl.program_id(0) % tile.chunks
    row = row_numbers(tl.program_id(0) // tile.chunks, K)
    live = row < rows
    per_row = tl.zeros((tile.rows, 1), dtype)
    if per_row_ptr is not None:
        per_row += tl.load(per_row_ptr + row * views.row_stride, live, other=0.0)
    total = tl.zeros((tile.rows, tile.columns), dtype)
    for step in range(tile.steps):
        column = column_numbers(chunk, step, tile.columns, K)
        ok = live & (column < columns)
        # In a tuple None stays a constant, which a variable of its own would not be.
        inputs = (
            _load(input_0_ptr, views.inputs[0], row, column, ok, dtype, K),
            None if input_1_ptr is None else _load(input_1_ptr, views.inputs[1], row, column, ok, dtype, K),
            None if input_2_ptr is None else _load(input_2_ptr, views.inputs[2], row, column, ok, dtype, K),
        )
        outputs, term = FORMULA(inputs, per_row, numbers)
        _store(output_0_ptr, views.outputs[0], outputs[0], row, column, ok, K)
        _store(output_1_ptr, views.outputs[1], outputs[1], row, column, ok, K)
        _store(output_2_ptr, views.outputs[2], outputs[2], row, column, ok, K)
        if sums_ptr is not None:
            total += tl.where(ok, term, 0.0)
    if sums_ptr is not None:
        tl.store(sums_ptr + row * tile.chunks + chunk, tl.sum(total, 1)[:, None], live)


class Plan:
    """A plan of an op that is a formula; takes the tensors of ElementwiseCall.

    Args:
        formula: as above.
        sums: whether something is summed over each row.
        numbers: makes those of the formula from the options of the op.
        box, dtypes, row_stride, rest: as `elementwise.Elementwise` gives them.
    """

    def __init__(
        self,
        formula: Any,
        sums: bool,
        numbers: Callable[..., tuple] = tuple,
        *,
        box: list[int],
        dtypes: dict[str, int],
        row_stride: int,
        **rest: Any,
    ) -> None:
        inputs, outputs = ([rest.pop(f"{kind}_{i}", None) for i in range(OPERANDS)] for kind in ("input", "output"))
        rows, *size = box
        columns = math.prod(size)
        tile = triton_box.tile(columns, 0, min(_ITEMSIZES[dtype] for dtype in dtypes.values()), sums)
        wide = max(2 * columns, *(triton_box.span(plan, box) for plan in inputs + outputs)) >= 2**31
        views = [tuple(triton_box.view(plan, box) for plan in plans) for plans in (inputs, outputs)]
        constants = Constants(numbers(**rest), tile, tuple(size), wide)
        programs = cdiv(rows, tile.rows) * tile.chunks
        arguments = (rows, Views(*views, tl.constexpr(row_stride)), constants, formula)
        self.main = Kernel(elementwise_kernel, programs, arguments, tile.warps)
        self.partials = (rows, tile.chunks) if tile.chunks > 1 and sums else None
        self.finish = triton_box.sum_partials(1, rows, tile.chunks)

    def __call__(self, device: torch.device, *tensors: Tensor | None) -> None:
        if self.partials is None:
            self.main(device, *tensors)
            return
        *others, sums = tensors
        assert sums is not None
        partials = torch.empty(self.partials, dtype=sums.dtype, device=device)
        self.main(device, *others, partials)
        self.finish(device, partials, sums)
