"""Affine couplings whose networks are perceptrons, many as one node of autograd's graph: on the CPU, where small
layers take more time between kernels than in them.

It is no operator, and has no backends: where the compiled module does not take a call, the caller's own layers run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import backends
from .._compat import readable
from . import perceptron, registration
from .affine_coupling import AffineForm, reference
from .affine_coupling.op import affine_coupling


class Step(NamedTuple):
    """A coupling, and the perceptron that makes raw numbers of what it keeps."""

    form: AffineForm
    passive: int  # of `functional.affine_coupling`, not 0
    parameters: Sequence[Tensor]
    slope: float

    def kept(self, z: Tensor) -> Tensor:
        return z[:, : self.passive] if self.passive > 0 else z[:, self.passive :]


def run(z: Tensor, steps: Sequence[Step], inverse: bool) -> tuple[Tensor, Tensor] | None:
    """z of shape (B, D) after all steps, in their order, and the sum of their log-determinants, shape (B,).

    None where the ordinary layers are to run.
    """
    if z.dim() != 2:
        return None
    nets = [perceptron.native(step.kept(z), step.parameters, step.slope) for step in steps]
    for net, step in zip(nets, steps):
        active = z.shape[1] - abs(step.passive)
        if net is None or step.parameters[-1].shape[0] != active * (1 if step.form.scale == "additive" else 2):
            return None
    parameters = [p for step in steps for p in step.parameters]
    if torch.is_grad_enabled() and (z.requires_grad or any(p.requires_grad for p in parameters)):
        return _Function.apply(nets, steps, inverse, z, *parameters)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(nets, steps, inverse, z, None)


def _forward(
    nets: Sequence[Any], steps: Sequence[Step], inverse: bool, z: Tensor, kept: list[Any] | None
) -> tuple[Tensor, Tensor]:
    """Adds to `kept` what backward reads: of each step hidden units, raw numbers and what it made of z."""
    log_dets = []
    for net, step in zip(nets, steps):
        half = step.kept(z)
        hidden = None if kept is None else perceptron.empty_hidden(half, step.parameters)
        raw = perceptron.forward(net, half, step.parameters, hidden)
        options = (step.form, step.passive, inverse)
        z, log_det = affine_coupling.forward_on(backends.CPU, (z, raw, None, None, None), options)
        log_dets.append(log_det)
        if kept is not None and hidden is not None:
            kept += hidden, raw, z
    return z, torch.stack(log_dets).sum(0)


def _formula(steps: Sequence[Step], inverse: bool, z: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The same in torch's own functions."""
    rest, log_dets = iter(parameters), []
    for step in steps:
        raw = step.kept(z)
        for i in range(0, len(step.parameters), 2):
            raw = F.linear(raw if i == 0 else perceptron.activate(raw, step.slope), next(rest), next(rest))
        z, log_det = reference.forward(z, raw, None, None, None, step.form, step.passive, inverse)
        log_dets.append(log_det)
    return z, torch.stack(log_dets).sum(0)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, nets, steps, inverse, z, *parameters):  # type: ignore[no-untyped-def]
        kept: list[Any] = []
        found = _forward(nets, steps, inverse, z, kept)
        if not _reads_output(steps[-1].form, inverse):
            kept[-1] = None  # which the caller may change
        ctx.save_for_backward(*kept, z, *parameters)
        ctx.rest = nets, steps, inverse
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        nets, steps, inverse = ctx.rest
        wanted = ctx.needs_input_grad[3:]
        if grads[0] is grads[1] is None:
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors  # once: under checkpointing they are made anew
        kept, inputs = saved[: 3 * len(steps)], saved[3 * len(steps) :]
        if not readable(*grads):
            found = registration.differentiate(
                lambda *tensors: _formula(steps, inverse, *tensors), inputs, wanted, grads
            )
        else:
            found = _backward(nets, steps, inverse, grads, kept, inputs, wanted)
        return None, None, None, *found


def _reads_output(form: AffineForm, inverse: bool) -> bool:
    return form.scale != "additive" and reference.saves_output(form, inverse)


def _backward(
    nets: Sequence[Any],
    steps: Sequence[Step],
    inverse: bool,
    grads: Sequence[Tensor | None],
    kept: Sequence[Any],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of z and of all parameters; nothing is computed for steps before the first that wants any."""
    found: list[Tensor | None] = []
    (grad, grad_log_det), end = grads, len(inputs)
    for i in reversed(range(len(steps))):
        if not any(wanted[:end]):
            break
        net, step, (hidden, raw, output) = nets[i], steps[i], kept[3 * i : 3 * i + 3]
        begin = end - len(step.parameters)
        z, of_z = kept[3 * i - 1] if i > 0 else inputs[0], any(wanted[:begin])
        options, half = (step.form, step.passive, inverse), step.kept(z)
        saved = reference.saved((z, raw, None, None, None), (output,), options)
        by = (of_z, True, False, False, False)
        grad, grad_raw, *_ = affine_coupling.backward_on(backends.CPU, (grad, grad_log_det), saved, options, by)
        of_half, *of_parameters = perceptron.backward(
            net, grad_raw, half, inputs[begin:end], hidden, (of_z, *wanted[begin:end])
        )
        if grad is not None and of_half is not None:
            step.kept(grad).add_(of_half)
        found, end = [*of_parameters, *found], begin
    return [grad if end == 1 else None, *(None,) * (end - 1), *found]
