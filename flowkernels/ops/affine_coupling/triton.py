"""Affine coupling in Triton: one launch each way, and one more where something is reduced over several programs.

How rows are cut, and how programs find their elements, is told in ..triton_box. The formulas are those of
csrc/flow/affine_coupling.h.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import triton_box
from .. import triton_math as tm
from ..native import DTYPES
from ..triton_box import Tile, View, across, at, column_numbers, load_passive, masked, row_numbers, store_passive
from ..triton_launch import Kernel, cdiv
from .form import SCALE_MAP_IDS

_MAPS = {number: name for name, number in SCALE_MAP_IDS.items()}
_ITEMSIZES = tuple(dtype.itemsize for dtype in DTYPES)
_PARTIAL_ELEMENTS = 2**18
_MAX_PARTIALS = 512


class ForwardViews(NamedTuple):
    x: View
    scale: View | None
    shift: View
    mask: View | None
    bound: View | None
    y: View
    x_passive: View
    y_passive: View


class BackwardViews(NamedTuple):
    grad_y: View
    saved: View
    scale: View | None
    mask: View | None
    bound: View | None
    grad_x: View
    grad_scale: View | None
    grad_shift: View
    grad_y_passive: View
    grad_x_passive: View
    grad_log_det_stride: object


class Form(NamedTuple):
    """What a kernel has to know of an AffineForm. The numbers are constants of the kernel: as arguments they would be
    float32 in a float64 kernel."""

    map: str
    logarithmic: bool  # whether the map gives log a
    divide: bool
    shift_first: bool
    bound: float
    inverse_bound: float
    first: float
    second: float
    scale_factor: float
    shift_factor: float


class Constants(NamedTuple):
    """What a kernel is compiled for, besides dtypes and strides."""

    form: Form
    tile: Tile
    active: tuple[int, int, int]
    passive: tuple[int, int, int]
    wide: bool  # whether offsets inside a row need 64 bits
    pairs: str  # how the gradients of scale and shift alternate in memory: "shift_scale", "scale_shift", "" if not


@triton.jit
def _bound(bound_ptr, bound, column, inside, K: tl.constexpr, DTYPE: tl.constexpr):
    """The bound of each column, or of all of them, and its reciprocal."""
    size: tl.constexpr = K.active
    if bound_ptr is None:
        return tl.full((1, 1), K.form.bound, DTYPE), tl.full((1, 1), K.form.inverse_bound, DTYPE)
    else:
        c = tl.load(bound_ptr + across(bound, column, size), inside, other=1.0).to(DTYPE)
        return c, tm.reciprocal(c)


@triton.jit
def _log_scale(s, c, inverse_c, FORM: tl.constexpr):
    if FORM.map == "tanh":
        return c * tm.tanh(s * inverse_c)
    elif FORM.map == "tanh_scaled":
        return c * tm.tanh(s)
    elif FORM.map == "atan":
        return 0.636 * c * tm.atan(s)
    elif FORM.map == "atan_legacy":
        return 0.636 * c * tm.atan(s * inverse_c)
    elif FORM.map == "sigmoid_centered":
        return c * tm.tanh(0.5 * s)
    elif FORM.map == "softclip":
        return tm.divide(s, 1.0 + tl.abs(s) * inverse_c)
    else:
        return s


@triton.jit
def _direct_scale(s, FORM: tl.constexpr):
    if FORM.map == "sigmoid":
        return tm.sigmoid(s + FORM.first)
    elif FORM.map == "sigmoid_floor":
        return tm.sigmoid(s + FORM.first) + FORM.second
    elif FORM.map == "softplus":
        a = tm.softplus(s) + FORM.first
        return tl.where(FORM.second < a, FORM.second, a)
    elif FORM.map == "exp_floor":
        return tm.exp(FORM.first + 0.5 * s) + FORM.second
    else:
        return s


@triton.jit
def _multiplier(s, c, inverse_c, FORM: tl.constexpr):
    """m and log |m|."""
    if FORM.logarithmic:
        log_a = _log_scale(s, c, inverse_c, FORM)
        log_m = -log_a if FORM.divide else log_a
        return tm.exp(log_m), log_m
    else:
        a = _direct_scale(s, FORM)
        log_a = tm.log_sigmoid(s + FORM.first) if FORM.map == "sigmoid" else tm.log(tl.abs(a))
        if FORM.divide:
            return tm.reciprocal(a), -log_a
        else:
            return a, log_a


@triton.jit
def _slope(s, c, inverse_c, FORM: tl.constexpr):
    """d log a / ds, and d log a / dc (0 where there is no bound)."""
    zero = tl.zeros_like(s)
    if FORM.map == "tanh":
        u = s * inverse_c
        tanh, sech2 = tm.tanh_sech2(u)
        return sech2, tanh - u * sech2
    elif FORM.map == "tanh_scaled":
        tanh, sech2 = tm.tanh_sech2(s)
        return c * sech2, tanh
    elif FORM.map == "atan":
        return tm.divide(0.636 * c + zero, 1.0 + s * s), 0.636 * tm.atan(s)
    elif FORM.map == "atan_legacy":
        u = s * inverse_c
        derivative = tm.divide(zero + 0.636, 1.0 + u * u)
        return derivative, 0.636 * tm.atan(u) - u * derivative
    elif FORM.map == "sigmoid_centered":
        tanh, sech2 = tm.tanh_sech2(0.5 * s)
        return 0.5 * c * sech2, tanh
    elif FORM.map == "softclip":
        u = s * inverse_c
        r = tm.reciprocal(1.0 + tl.abs(u))
        return r * r, (u * r) * (tl.abs(u) * r)
    elif FORM.map == "sigmoid":
        return tm.sigmoid(-(s + FORM.first)), zero
    elif FORM.map == "sigmoid_floor":
        v = s + FORM.first
        p = tm.sigmoid(v)
        return tm.sigmoid(-v) * tm.divide(p, p + FORM.second), zero
    elif FORM.map == "softplus":
        a = tm.softplus(s) + FORM.first
        return tl.where(FORM.second < a, 0.0, tm.divide(tm.sigmoid(s), a)), zero
    elif FORM.map == "exp_floor":
        e = tm.exp(FORM.first + 0.5 * s)
        return tm.divide(0.5 * e, e + FORM.second), zero
    elif FORM.map == "given":
        return tm.reciprocal(s), zero
    else:
        return zero + 1.0, zero


@triton.jit(do_not_specialize=["rows"])
def affine_coupling_forward_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    mask_ptr,
    bound_ptr,
    y_ptr,
    log_det_ptr,  # one value per row and chunk
    rows,
    views,
    K: tl.constexpr,
):
    dtype: tl.constexpr = log_det_ptr.dtype.element_ty
    form: tl.constexpr = K.form
    tile: tl.constexpr = K.tile
    size: tl.constexpr = K.active
    active: tl.constexpr = K.active[0] * K.active[1] * K.active[2]
    chunk = tl.program_id(0) % tile.chunks
    row = row_numbers(tl.program_id(0) // tile.chunks, K)
    live = row < rows
    tile_shape: tl.constexpr = (tile.rows, tile.columns)
    total = tl.zeros(tile_shape, dtype)
    for step in range(tile.steps):
        column = column_numbers(chunk, step, tile.columns, K)
        inside = column < active
        ok = live & inside
        counted = ok
        beside = load_passive(x_ptr, views.x_passive, row, live, chunk, step, x_ptr.dtype.element_ty, K)
        kept = tl.load(at(x_ptr, views.x, row, column, size), ok)
        z = kept.to(dtype)
        t = tl.load(at(shift_ptr, views.shift, row, column, size), ok).to(dtype) * form.shift_factor
        if scale_ptr is None:
            value = z + t
            log_m = tl.zeros_like(z)
        else:
            s = tl.load(at(scale_ptr, views.scale, row, column, size), ok).to(dtype) * form.scale_factor
            c, inverse_c = _bound(bound_ptr, views.bound, column, inside, K, dtype)
            m, log_m = _multiplier(s, c, inverse_c, form)
            value = m * (z + t) if form.shift_first else m * z + t
        value = value.to(x_ptr.dtype.element_ty)
        if mask_ptr is not None:
            skipped = masked(mask_ptr, views.mask, column, inside, K)
            value = tl.where(skipped, kept, value)
            counted = ok & (skipped == 0)
        tl.store(at(y_ptr, views.y, row, column, size), value, ok)
        store_passive(y_ptr, views.y_passive, beside, row, live, chunk, step, K)
        total += tl.where(counted, log_m, 0.0)
    tl.store(log_det_ptr + row * tile.chunks + chunk, tl.sum(total, 1)[:, None], live)


@triton.jit
def _store_pairs(pointer, view, first, second, row, live, chunk, K: tl.constexpr):
    """Store two gradients that alternate in memory. One after the other, each would write every other element, and
    so every sector twice; reads have a cache that makes good for it."""
    column = column_numbers(chunk, 0, 2 * K.tile.columns, K)
    shape: tl.constexpr = (K.tile.rows, 2 * K.tile.columns)
    both = tl.reshape(tl.join(first, second), shape)
    tl.store(pointer + (view.offset + row * view.row) + column, both, live & (column < 2 * K.active[2]))


@triton.jit
def _backward_tile(
    grad_y_ptr,
    grad_log_det_ptr,
    saved_ptr,
    scale_ptr,
    mask_ptr,
    bound_ptr,
    grad_x_ptr,
    grad_scale_ptr,
    grad_shift_ptr,
    rows,
    row_tile,
    chunk,
    views,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The gradients of one tile; returns its elements of the bound's."""
    form: tl.constexpr = K.form
    size: tl.constexpr = K.active
    active: tl.constexpr = K.active[0] * K.active[1] * K.active[2]
    row = row_numbers(row_tile, K)
    column = column_numbers(chunk, 0, K.tile.columns, K)
    live = row < rows
    inside = column < active
    ok = live & inside
    counted = ok
    beside = load_passive(grad_y_ptr, views.grad_y_passive, row, live, chunk, 0, saved_ptr.dtype.element_ty, K)
    kept = tl.zeros(ok.shape, saved_ptr.dtype.element_ty)
    if grad_y_ptr is not None:
        kept = tl.load(at(grad_y_ptr, views.grad_y, row, column, size), ok)
    g = kept.to(DTYPE)
    if scale_ptr is None:
        gradient = g
        grad_s = g
        grad_c = g
    else:
        s = tl.load(at(scale_ptr, views.scale, row, column, size), ok).to(DTYPE) * form.scale_factor
        c, inverse_c = _bound(bound_ptr, views.bound, column, inside, K, DTYPE)
        m, _ = _multiplier(s, c, inverse_c, form)
        slope, bound_slope = _slope(s, c, inverse_c, form)
        gradient = g * m
        z = tl.load(at(saved_ptr, views.saved, row, column, size), ok).to(DTYPE)
        grad_log_m = (g if form.shift_first else gradient) * z
        if grad_log_det_ptr is not None:
            grad_log_m += tl.load(grad_log_det_ptr + row * views.grad_log_det_stride, live).to(DTYPE)
        grad_log_a = -grad_log_m if form.divide else grad_log_m
        grad_s = form.scale_factor * (slope * grad_log_a)
        grad_c = bound_slope * grad_log_a
    grad_t = form.shift_factor * (gradient if form.shift_first else g)
    gradient = gradient.to(saved_ptr.dtype.element_ty)
    if mask_ptr is not None:
        skipped = masked(mask_ptr, views.mask, column, inside, K)
        gradient = tl.where(skipped, kept, gradient)
        grad_s = tl.where(skipped, 0.0, grad_s)
        grad_t = tl.where(skipped, 0.0, grad_t)
        counted = ok & (skipped == 0)
    if grad_x_ptr is not None:
        tl.store(at(grad_x_ptr, views.grad_x, row, column, size), gradient, ok)
        store_passive(grad_x_ptr, views.grad_x_passive, beside, row, live, chunk, 0, K)
    if grad_shift_ptr is not None:
        grad_s = grad_s.to(grad_shift_ptr.dtype.element_ty)
        grad_t = grad_t.to(grad_shift_ptr.dtype.element_ty)
        if K.pairs == "shift_scale":
            _store_pairs(grad_shift_ptr, views.grad_shift, grad_t, grad_s, row, live, chunk, K)
        elif K.pairs == "scale_shift":
            _store_pairs(grad_scale_ptr, views.grad_scale, grad_s, grad_t, row, live, chunk, K)
        else:
            tl.store(at(grad_shift_ptr, views.grad_shift, row, column, size), grad_t, ok)
            if grad_scale_ptr is not None:
                tl.store(at(grad_scale_ptr, views.grad_scale, row, column, size), grad_s, ok)
    return tl.where(counted, grad_c, 0.0)


@triton.jit(do_not_specialize=["rows", "tiles_per_group"])
def affine_coupling_backward_kernel(
    grad_y_ptr,
    grad_log_det_ptr,
    saved_ptr,
    scale_ptr,
    mask_ptr,
    bound_ptr,
    grad_x_ptr,
    grad_scale_ptr,
    grad_shift_ptr,
    partial_ptr,  # of the bound's gradient, one value per group of rows and column
    rows,
    tiles_per_group,
    views,
    K: tl.constexpr,
):
    dtype: tl.constexpr = tl.float64 if saved_ptr.dtype.element_ty == tl.float64 else tl.float32
    tile: tl.constexpr = K.tile
    chunk = tl.program_id(0) % tile.chunks
    group = tl.program_id(0) // tile.chunks
    if partial_ptr is None:
        _backward_tile(
            grad_y_ptr, grad_log_det_ptr, saved_ptr, scale_ptr, mask_ptr, bound_ptr, grad_x_ptr, grad_scale_ptr,
            grad_shift_ptr, rows, group, chunk, views, K, dtype,
        )  # fmt: skip
    else:
        active: tl.constexpr = K.active[0] * K.active[1] * K.active[2]
        tile_shape: tl.constexpr = (tile.rows, tile.columns)
        total = tl.zeros(tile_shape, dtype)
        first = group * tiles_per_group
        last = tl.minimum(first + tiles_per_group, tl.cdiv(rows, tile.rows))
        for begin in range(first, last, 64):  # two levels, so that errors hardly grow with the batch
            part = tl.zeros(tile_shape, dtype)
            for row_tile in range(begin, tl.minimum(begin + 64, last)):
                part += _backward_tile(
                    grad_y_ptr, grad_log_det_ptr, saved_ptr, scale_ptr, mask_ptr, bound_ptr, grad_x_ptr,
                    grad_scale_ptr, grad_shift_ptr, rows, row_tile, chunk, views, K, dtype,
                )  # fmt: skip
            total += part
        column = column_numbers(chunk, 0, tile.columns, K)
        target = partial_ptr + group.to(tl.int64) * active + column
        tl.store(target, tl.sum(total, 0)[None, :], column < active)


class _Plan:
    """The common part of a plan (AffinePlan), as the kernels want it."""

    def __init__(self, plan: dict[str, Any], whole_row: bool) -> None:
        self._plan = plan
        self.rows = plan["active"][0]
        active, passive = plan["active"][1:], plan["passive"][1:]
        itemsize = min(_ITEMSIZES[plan["x_dtype"]], _ITEMSIZES[plan["raw_dtype"]])
        self.columns = math.prod(active)
        self.tile = triton_box.tile(self.columns, math.prod(passive), itemsize, whole_row)
        self.row_tiles = cdiv(self.rows, self.tile.rows)
        self.constants = Constants(self._form(), self.tile, tuple(active), tuple(passive), self._wide(), self._pairs())

    def _pairs(self) -> str:
        scale, shift = (self._plan.get(name) for name in ("grad_scale", "grad_shift"))
        if scale is None or shift is None or scale[1:] != shift[1:] or scale[2:] != [0, 0, 2]:
            return ""
        return {1: "shift_scale", -1: "scale_shift"}.get(scale[0] - shift[0], "")

    def _form(self) -> Form:
        plan = self._plan
        logarithmic = plan["map"] <= SCALE_MAP_IDS["softclip"]
        bound, *numbers = (float(plan[n]) for n in ("bound", "first", "second", "scale_factor", "shift_factor"))
        flags = (logarithmic, plan["divide"], plan["shift_first"])
        return Form(_MAPS[plan["map"]], *flags, bound, 1 / bound, *numbers)

    def _size(self, name: str) -> list[int]:
        return self._plan["passive" if name.endswith("_passive") else "active"]

    def _wide(self) -> bool:
        """Whether an offset inside a row, or the number of a column past its end, may exceed 32 bits."""
        spans = [2 * math.prod(self._plan[n][1:]) for n in ("active", "passive")]
        for name in (*ForwardViews._fields, *BackwardViews._fields):
            if isinstance(view := self._plan.get(name), list):
                spans.append(triton_box.span(view, self._size(name)))
        return max(spans) >= 2**31

    def views(self, names: tuple[str, ...]) -> list[View | None]:
        return [triton_box.view(self._plan.get(name), self._size(name)) for name in names]


class AffineForward:
    """A forward plan; takes the tensors of AffineForwardCall."""

    def __init__(self, **plan: Any) -> None:
        common = _Plan(plan, whole_row=True)
        names = ("x", "scale", "shift", "mask", "bound_view", "y", "x_passive", "y_passive")
        views = ForwardViews._make(common.views(names))
        chunks = common.tile.chunks
        self.partials = (common.rows, chunks) if chunks > 1 else None
        self.main = Kernel(
            affine_coupling_forward_kernel,
            common.row_tiles * chunks,
            (common.rows, views, common.constants),
            common.tile.warps,
        )
        self.finish = triton_box.sum_partials(1, common.rows, chunks)

    def __call__(self, device: torch.device, *tensors: Tensor | None) -> None:
        if self.partials is None:
            self.main(device, *tensors)
            return
        *others, log_det = tensors
        assert log_det is not None
        partials = torch.empty(self.partials, dtype=log_det.dtype, device=device)
        self.main(device, *others, partials)
        self.finish(device, partials, log_det)


class AffineBackward:
    """A backward plan; takes the tensors of AffineBackwardCall."""

    def __init__(self, grad_log_det_stride: int, **plan: Any) -> None:
        self.common = _Plan(plan, whole_row=False)
        names = ("grad_y", "saved", "scale", "mask", "bound_view", "grad_x", "grad_scale", "grad_shift")
        views = self.common.views((*names, "grad_y_passive", "grad_x_passive"))
        self.views = BackwardViews._make((*views, tl.constexpr(grad_log_det_stride)))
        self.bound_view, self.channels = plan.get("bound_view", [0] * 5), plan["channels"]

    def __call__(self, device: torch.device, *tensors: Tensor | None) -> None:
        *others, grad_bound = tensors
        if grad_bound is None:
            self._elementwise(device, *others, None)
            return
        partials = torch.empty(self._groups, self.common.columns, dtype=grad_bound.dtype, device=device)
        main, finish = self._reducing
        main(device, *others, partials)
        finish(device, partials, grad_bound)

    def _main(self, groups: int, tiles_per_group: int) -> Kernel:
        arguments = (self.common.rows, tiles_per_group, self.views, self.common.constants)
        programs = groups * self.common.tile.chunks
        return Kernel(affine_coupling_backward_kernel, programs, arguments, self.common.tile.warps)

    @functools.cached_property
    def _elementwise(self) -> Kernel:
        return self._main(self.common.row_tiles, 1)

    @functools.cached_property
    def _groups(self) -> int:
        """Into how many groups the rows are cut to sum the bound's gradient: enough to fill a GPU, few enough for the
        second sum to be short. It depends on the batch, never on the device."""
        return min(_MAX_PARTIALS, max(1, _PARTIAL_ELEMENTS // max(1, self.common.columns)), self.common.row_tiles)

    @functools.cached_property
    def _reducing(self) -> tuple[Kernel, Kernel]:
        main = self._main(self._groups, cdiv(self.common.row_tiles, max(1, self._groups)))
        size = self.common.constants.active
        channel = next((d for d in range(3) if self.bound_view[2 + d]), -1)  # -1: at most one channel, or no elements
        outer = self._groups * math.prod(size[: max(channel, 0)]) if self.common.columns else 0
        return main, triton_box.sum_partials(outer, self.channels, math.prod(size[channel + 1 :]))
