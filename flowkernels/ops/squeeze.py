"""Squares of pixels as channels, and back. It is one truth for all backends: torch's permuted copy, one pass over the
bytes on every device. On the CPU that pass takes several times as long as a copy in order, and squares of 2 x 2 are
moved by the compiled module.

It is no operator: what torch traces or transforms are torch's own functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from .._compat import batched, inside_transform, plain_eager
from .layout import memory_format, strides_of
from .native import cpu_module
from .plans import plans, remember

FACTOR = 2  # of the compiled module
FEWEST = 4096  # elements, below which a call of autograd's costs more than torch's copies


def squeeze(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) to (B, C f², H / f, W / f)."""
    if factor == FACTOR and (plan := _plan(x, False)) is not None:
        return _move(plan, x, False)
    return _squeezed(x, factor).contiguous(memory_format=memory_format(x))


def unsqueeze(y: Tensor, factor: int) -> Tensor:
    """(B, C f², H, W) to (B, C, H f, W f)."""
    if factor == FACTOR and (plan := _plan(y, True)) is not None:
        return _move(plan, y, True)
    return _unsqueezed(y, factor).contiguous(memory_format=memory_format(y))


def _squeezed(x: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // factor, factor, width // factor, factor).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(batch, channels * factor**2, height // factor, width // factor)


def _unsqueezed(y: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = y.shape
    blocks = y.reshape(batch, channels // factor**2, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, channels // factor**2, height * factor, width * factor)


def moves_lines(source: Any, back: bool) -> bool:
    """Whether the compiled module does it, from contiguous lines to contiguous lines."""
    if not isinstance(source, Tensor) or source.dim() != 4 or batched(source) or source.stride(3) != 1:
        return False
    if memory_format(source) is torch.channels_last:
        return False
    _, channels, height, width = source.shape
    fits = channels % FACTOR**2 == 0 if back else height % FACTOR == width % FACTOR == 0
    return fits and _plan(source, back) is not None


class _Plan(NamedTuple):
    run: Any
    shape: tuple[int, ...]  # of the result


def _plan(source: Tensor, back: bool) -> _Plan | None:
    """What moves the elements of a picture, or of a squeezed one, if the compiled module does."""
    if torch.compiler.is_compiling() or source.numel() < FEWEST or not source.is_cpu:
        return None
    if inside_transform() or not plain_eager(source):
        return None
    key = ("squeeze", backends.requested(), back, source.shape, source.stride(), source.dtype)
    return plans[key] if key in plans else remember(key, _made(source, back))  # type: ignore[no-any-return]


def _made(source: Tensor, back: bool) -> _Plan | None:
    module = cpu_module()
    if module is None:
        return None
    last = memory_format(source) is torch.channels_last
    if source.dtype.is_complex or not (last or source.stride(3) == 1):
        return None
    batch, channels, height, width = source.shape
    if back:
        shape, sizes = (batch, channels // 4, 2 * height, 2 * width), (batch, channels // 4, height, width)
    else:
        shape = (batch, 4 * channels, height // 2, width // 2)
        sizes = (batch, channels, *shape[2:])
    if last and sizes[1] == 1:  # such a picture is in order, which what it is squeezed to is not
        return None
    strides = strides_of(shape, memory_format(source))
    picture, squeezed = (strides, source.stride()) if back else (source.stride(), strides)
    element_size = source.element_size()
    return _Plan(module.Squeeze(sizes=sizes, element_size=element_size, picture=picture, squeezed=squeezed), shape)


def _move(plan: _Plan, source: Tensor, back: bool) -> Tensor:
    if torch.is_grad_enabled() and source.requires_grad:
        return _Function.apply(plan, source, back)  # type: ignore[no-any-return, no-untyped-call]
    return _moved(plan, source, back)


def _moved(plan: _Plan, source: Tensor, back: bool) -> Tensor:
    result = torch.empty(plan.shape, dtype=source.dtype, device=source.device, memory_format=memory_format(source))
    picture, squeezed = (result, source) if back else (source, result)
    plan.run(picture.data_ptr(), squeezed.data_ptr(), back)
    return result


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, source, back):  # type: ignore[no-untyped-def]
        ctx.back = back
        return _moved(plan, source, back)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if batched(grad):  # which has no memory, and no format
            return None, (_squeezed if ctx.back else _unsqueezed)(grad, FACTOR), None
        return None, squeeze(grad, FACTOR) if ctx.back else unsqueeze(grad, FACTOR), None
