"""Schema, autograd and backend choice of affine coupling: what its backends have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from ..._compat import batched, inside_transform, plain_eager, tracing_inside_transform
from .. import registration
from ..layout import allocate_like, allocate_log_det
from . import native, reference
from .check import check
from .form import AffineForm

FORWARD_SCHEMA = (
    "(Tensor x, Tensor raw, Tensor? shift, Tensor? mask, Tensor? bound,"
    " str form, int passive, bool inverse, int backend) -> (Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "(Tensor? grad_y, Tensor? grad_log_det, Tensor saved, Tensor raw, Tensor? mask, Tensor? bound, bool paired,"
    " str form, int passive, bool inverse, bool[3] wanted, int backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _run_forward(
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    spec: str,
    passive: int,
    inverse: bool,
    backend: int,
) -> tuple[Tensor, Tensor]:
    number = backends.resolve(backend, x.device)
    return _run_forward_on(number, x, raw, shift, mask, bound, AffineForm.from_spec(spec), passive, inverse)


def _run_forward_on(number: int, x, raw, shift, mask, bound, form: AffineForm, passive: int, inverse: bool):
    if number == backends.REFERENCE:
        check(x, raw, shift, mask, bound, form, passive)
        y, log_det = reference.forward(x, raw, shift, mask, bound, form, passive, inverse)
        return allocate_like(x).copy_(y), log_det
    if number == backends.TRITON:
        from . import triton

        return triton.forward(x, raw, shift, mask, bound, form, passive, inverse)
    return native.forward(number, x, raw, shift, mask, bound, form, passive, inverse)


def _run_backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    raw: Tensor,
    mask: Tensor | None,
    bound: Tensor | None,
    paired: bool,
    spec: str,
    passive: int,
    inverse: bool,
    wanted: tuple[bool, ...],
    backend: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    form = AffineForm.from_spec(spec)
    number = backends.resolve(backend, saved.device)
    arguments = (grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse)
    return _run_backward_on(number, *arguments, tuple(wanted))


def _run_backward_on(number: int, *arguments):
    if number == backends.REFERENCE:
        return _reference_backward(*arguments)
    if number == backends.TRITON:
        from . import triton

        return triton.backward(*arguments)
    return native.backward(number, *arguments)


def _reference_backward(grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse, wanted):
    grads = reference.backward(grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse)
    likes = (saved, raw, raw, bound)
    needed = (wanted[0], wanted[1], wanted[1] and paired, wanted[2])
    return tuple(allocate_like(like).copy_(g) if n else None for g, like, n in zip(grads, likes, needed))


def _backward_operator(grad_y, grad_log_det, saved, raw, *rest):
    """As `_run_backward`, with an empty tensor for each gradient not wanted: operators return a fixed number."""
    grads = _run_backward(grad_y, grad_log_det, saved, raw, *rest)
    return tuple(saved.new_empty(0) if g is None else g for g in grads)


def _fake_forward(x, raw, shift, mask, bound, spec, passive, inverse, backend):
    check(x, raw, shift, mask, bound, AffineForm.from_spec(spec), passive)
    return allocate_like(x), allocate_log_det(x)


def _fake_backward(grad_y, grad_log_det, saved, raw, mask, bound, paired, spec, passive, inverse, wanted, backend):
    empty = saved.new_empty
    return (
        allocate_like(saved) if wanted[0] else empty(0),
        allocate_like(raw) if wanted[1] else empty(0),
        allocate_like(raw) if wanted[1] and paired else empty(0),
        torch.empty_like(bound) if wanted[2] else empty(0),
    )


def _shape_only(tensor: Tensor) -> Tensor:
    """A tensor of this shape and dtype that holds one element: for backward formulas that do not read the values."""
    return tensor.new_empty(()).expand(tensor.shape)


def _what_backward_reads(x, raw, y, form: AffineForm, inverse: bool) -> tuple[Tensor, Tensor]:
    """The two tensors to save, no more than the gradient needs: never the shift, nothing for an additive form."""
    if form.scale == "additive":
        return _shape_only(x), _shape_only(raw)
    return (y if reference.saves_output(form, inverse) else x), raw


def _save_for_backward(ctx, inputs, output) -> None:
    x, raw, shift, mask, bound, spec, passive, inverse, backend = inputs
    saved, raw = _what_backward_reads(x, raw, output[0], AffineForm.from_spec(spec), inverse)
    ctx.save_for_backward(saved, raw, mask, bound)
    ctx.arguments = (shift is not None, spec, passive, inverse)
    ctx.backend = backend
    ctx.set_materialize_grads(False)


def _differentiate_forward(ctx, grad_y, grad_log_det):
    if grad_y is None and grad_log_det is None:
        return (None,) * 9
    needs = ctx.needs_input_grad
    wanted = (needs[0], needs[1] or needs[2], needs[4])
    if not torch.compiler.is_compiling() and batched(grad_y, grad_log_det):
        saved, raw, mask, bound = ctx.saved_tensors
        paired, spec, passive, inverse = ctx.arguments
        form = AffineForm.from_spec(spec)
        grads = reference.backward(grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse)
        return *grads[:3], None, grads[3], None, None, None, None
    grad_x, grad_raw, grad_shift, grad_bound = _call_backward_operator(
        grad_y, grad_log_det, *ctx.saved_tensors, *ctx.arguments, wanted, ctx.backend
    )
    return grad_x, grad_raw, grad_shift, None, grad_bound, None, None, None, None


def _call_backward_operator(
    grad_y, grad_log_det, saved, raw, mask, bound, paired, spec, passive, inverse, wanted, backend
):
    outputs = torch.ops.flowkernels.affine_coupling_backward.default(
        grad_y, grad_log_det, saved, raw, mask, bound, paired, spec, passive, inverse, wanted, backend
    )
    needed = (wanted[0], wanted[1], wanted[1] and paired, wanted[2])
    return (g if n else None for g, n in zip(outputs, needed))


def _save_for_second_backward(ctx, inputs, output) -> None:
    grad_y, grad_log_det, saved, raw, mask, bound, paired, spec, passive, inverse, _, _ = inputs
    ctx.save_for_backward(grad_y, grad_log_det, saved, raw, bound, mask)
    ctx.arguments = (paired, spec, passive, inverse)
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx, *grads):
    """Differentiates the reference's backward formula, so that every further derivative is that of the reference."""
    *inputs, mask = ctx.saved_tensors
    paired, spec, passive, inverse = ctx.arguments
    needs = ctx.needs_input_grad[:4] + ctx.needs_input_grad[5:6]

    def formula(grad_y, grad_log_det, saved, raw, bound):
        form = AffineForm.from_spec(spec)
        return reference.backward(grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse)

    out = registration.differentiate(formula, inputs, needs, grads)
    return *out[:4], None, out[4], *(None,) * 6


registration.define("affine_coupling", FORWARD_SCHEMA, _run_forward, _fake_forward)
registration.define("affine_coupling_backward", BACKWARD_SCHEMA, _backward_operator, _fake_backward)
registration.differentiable("affine_coupling", _save_for_backward, _differentiate_forward)
registration.differentiable("affine_coupling_backward", _save_for_second_backward, _differentiate_backward)


class _AffineCoupling(torch.autograd.Function):
    """The registered operator without the dispatcher, which costs as much as a small launch."""

    @staticmethod
    def forward(ctx, x, raw, shift, bound, rest):
        mask, form, passive, inverse, number = rest
        output = _run_forward_on(number, x, raw, shift, mask, bound, form, passive, inverse)
        ctx.save_for_backward(*_what_backward_reads(x, raw, output[0], form, inverse), mask, bound)
        ctx.rest = (shift is not None, form, passive, inverse, number)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx, grad_y, grad_log_det):
        if grad_y is None and grad_log_det is None:
            return None, None, None, None, None
        saved, raw, mask, bound = ctx.saved_tensors
        paired, form, passive, inverse, number = ctx.rest
        needs = ctx.needs_input_grad
        wanted = (needs[0], needs[1] or needs[2], needs[3])
        if batched(grad_y, grad_log_det):  # which have no memory that a kernel could read
            grads = reference.backward(grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse)
        elif not torch.is_grad_enabled() and plain_eager(grad_y, grad_log_det):
            grads = _run_backward_on(
                number, grad_y, grad_log_det, saved, raw, paired, mask, bound, form, passive, inverse, wanted
            )
        else:
            grads = _call_backward_operator(
                grad_y, grad_log_det, saved, raw, mask, bound, paired, form.spec, passive, inverse, wanted, number
            )
        return *grads, None


def affine_coupling(
    x: Tensor,
    raw: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    bound: Tensor | None,
    form: AffineForm,
    passive: int,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Affine coupling by the backend in force, differentiable any number of times."""
    request = backends.requested()
    number = backends.resolve(request, x.device)
    compiling = torch.compiler.is_compiling()
    transforming = tracing_inside_transform() if compiling else inside_transform()
    if number == backends.REFERENCE or transforming:
        check(x, raw, shift, mask, bound, form, passive)
        return reference.forward(x, raw, shift, mask, bound, form, passive, inverse)
    if compiling or not plain_eager(x, raw, shift, mask, bound):
        return torch.ops.flowkernels.affine_coupling.default(
            x, raw, shift, mask, bound, form.spec, passive, inverse, request
        )
    if torch.is_grad_enabled() and (
        x.requires_grad
        or raw.requires_grad
        or (shift is not None and shift.requires_grad)
        or (bound is not None and bound.requires_grad)
    ):
        return _AffineCoupling.apply(x, raw, shift, bound, (mask, form, passive, inverse, number))
    return _run_forward_on(number, x, raw, shift, mask, bound, form, passive, inverse)
