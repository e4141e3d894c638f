"""Activation normalisation, one truth for all backends: torch's batch normalisation with fixed statistics, which is the
same map, one pass forward and one backward that also reduces the gradients of the parameters.

On the CPU torch's calls around that pass take as long as it does: the compiled module does all of it at once. It is no
operator: what torch traces or transforms are torch's own functions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import backends
from .._compat import inside_transform, plain_eager, readable
from .layout import accumulation_dtype, allocate_like, allocate_log_det, memory_format, strides_of
from .native import cpu_module
from .plans import plans, remember


def actnorm(x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """y = exp(log_scale) x + shift, or its inverse, for each channel, and log_det."""
    plan = _plan(x, log_scale, shift, inverse)
    if plan is None:
        return _formula(x, log_scale, shift, inverse)
    if torch.is_grad_enabled() and (x.requires_grad or log_scale.requires_grad or shift.requires_grad):
        return _Function.apply(plan, x, log_scale, shift, inverse)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(plan, x, log_scale, shift)


def _formula(x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    log_scale, shift = log_scale.to(dtype), shift.to(dtype)
    total = log_scale.sum() * math.prod(x.shape[2:])
    if inverse:
        scale = torch.exp(-log_scale)
        shift, total = -shift * scale, -total
    else:
        scale = torch.exp(log_scale)
    kept_last = memory_format(x)
    if kept_last is not torch.contiguous_format and x.stride() != strides_of(x.shape, kept_last):
        x = x.contiguous()  # torch reads gradients in the wrong order for channels-last strides not its own
    mean, variance = torch.zeros_like(scale), torch.ones_like(scale)
    y = F.batch_norm(x, mean, variance, scale, shift, training=False, eps=0.0)
    return y, total.expand(x.shape[0])


def _formula_of_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, log_scale and shift, which can be differentiated again."""
    sign = -1 if inverse else 1
    others, one = [d for d in range(x.dim()) if d != 1], (-1, *(1,) * (x.dim() - 2))
    scale = torch.exp(sign * log_scale)
    moved = x - shift.view(one) if inverse else x
    of_log_scale = scale * (grad_y * moved).sum(others) + math.prod(x.shape[2:]) * grad_log_det.sum()
    of_shift = grad_y.sum(others)
    return grad_y * scale.view(one), sign * of_log_scale, -scale * of_shift if inverse else of_shift


def _plan(x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool) -> Any:
    """What runs the call, if the compiled module does."""
    if torch.compiler.is_compiling() or not x.is_cpu or inside_transform() or not plain_eager(x, log_scale, shift):
        return None
    if not (log_scale.dtype is shift.dtype is x.dtype and log_scale.is_contiguous() and shift.is_contiguous()):
        return None
    key = ("actnorm", backends.requested(), inverse, x.shape, x.stride(), x.dtype)
    return plans[key] if key in plans else remember(key, _made(x, inverse))


def _made(x: Tensor, inverse: bool) -> Any:
    module = cpu_module()
    if module is None:
        return None
    if x.dtype not in (torch.float32, torch.float64) or x.numel() == 0:
        return None
    pixels, last = math.prod(x.shape[2:]), memory_format(x) is not torch.contiguous_format
    if not last and not x[0].is_contiguous():
        return None
    return module.Actnorm(
        rows=x.shape[0],
        channels=x.shape[1],
        pixels=pixels,
        row_stride=x.stride(0),
        channels_last=last or pixels == 1,
        double_precision=x.dtype == torch.float64,
        inverse=inverse,
    )


def _forward(plan: Any, x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    y, log_det = allocate_like(x), allocate_log_det(x)
    plan.forward(x.data_ptr(), log_scale.data_ptr(), shift.data_ptr(), y.data_ptr(), log_det.data_ptr())
    return y, log_det


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, x, log_scale, shift, inverse):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, log_scale, shift)
        ctx.plan, ctx.inverse = plan, inverse
        y, log_det = _forward(plan, x, log_scale, shift)
        if not ctx.needs_input_grad[2]:
            ctx.mark_non_differentiable(log_det)
        return y, log_det

    @staticmethod
    def backward(ctx, grad_y, grad_log_det):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors
        if not readable(grad_y, grad_log_det):
            return None, *_formula_of_backward(grad_y, grad_log_det, *saved, ctx.inverse), None
        x, log_scale, shift = saved
        grad_y = grad_y.contiguous(memory_format=memory_format(x))
        grad_x = allocate_like(x) if ctx.needs_input_grad[1] else None
        of_log_scale, of_shift = torch.empty_like(log_scale), torch.empty_like(shift)
        given = grad_y.data_ptr(), grad_log_det.data_ptr(), grad_log_det.stride(0), *(t.data_ptr() for t in saved)
        address = 0 if grad_x is None else grad_x.data_ptr()
        ctx.plan.backward(*given, address, of_log_scale.data_ptr(), of_shift.data_ptr())
        return None, grad_x, of_log_scale, of_shift, None
