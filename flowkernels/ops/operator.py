"""An operator of several backends: its schema, fake, gradients of any order and choice of backend.

Every op is a package of plain functions that an `Operator` ties together:

    check.check(*tensors, *options)                raises TypeError or ValueError
    reference.forward(*tensors, *options)          -> the outputs; one alone is no tuple
    reference.saved(tensors, outputs, options)     -> what backward reads; item i has the shape and dtype of tensor i
    reference.backward(*grads, *saved, *options)   -> one gradient per tensor
    plan.forward(module, launch, *tensors, *options)
    plan.backward(module, launch, *grads, *saved, *options, wanted)
                                                   as the reference's; `module` is a compiled module, or triton.py
                                                   with classes of the same names, and `launch` runs what they make

Gradients of outputs may be None. `wanted` says which tensors need a gradient; for the others a backend may return None.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._compat import batched, inside_transform, plain_eager, tracing_inside_transform
from . import registration
from .layout import allocate_like, allocate_log_det
from .native import launcher


class Operator:
    """``torch.ops.flowkernels.<name>`` and its backward.

    Args:
        package: the op's package, which has the op's name.
        tensors: names of the tensor arguments, the first of them shaped like the output; those that may be None end
            in ``?``.
        options: the other arguments as a schema has them, such as ``"bool inverse"``.
        outputs: names of the outputs: the last has one number per row, one before it the shape of the first tensor.
    """

    def __init__(
        self,
        package: str,
        tensors: tuple[str, ...],
        options: tuple[str, ...],
        outputs: tuple[str, ...] = ("y", "log_det"),
    ) -> None:
        self._package = package
        self._check = self._module("check").check
        self._reference = self._module("reference")
        self._plan = self._module("plan")
        self._count, self._outputs = len(tensors), len(outputs)
        name = package.rpartition(".")[2]
        plain = ", ".join((*options, "int backend"))
        inputs = ", ".join(f"Tensor? {t[:-1]}" if t.endswith("?") else f"Tensor {t}" for t in tensors)
        grads = ", ".join(f"Tensor? grad_{o}" for o in outputs)
        results, gradients = (", ".join("Tensor" for _ in names) for names in (outputs, tensors))
        registration.define(
            name, f"({inputs}, {plain}) -> ({results})", self._forward_implementation, self._fake_forward
        )
        registration.define(
            name + "_backward",
            f"({grads}, {inputs}, bool[{len(tensors)}] wanted, {plain}) -> ({gradients})",
            self._backward_implementation,
            self._fake_backward,
        )
        registration.differentiable(name, self._save, self._differentiate)
        registration.differentiable(name + "_backward", self._save_again, self._differentiate_again)
        self._forward_operator = getattr(torch.ops.flowkernels, name).default
        self._backward_operator = getattr(torch.ops.flowkernels, name + "_backward").default
        self._function = _autograd_function(self)

    def encode(self, options: tuple) -> tuple:
        """The options as the schema has them."""
        return options

    def decode(self, options: tuple) -> tuple:
        """What `encode` was given."""
        return options

    def __call__(self, *arguments: Any) -> Any:
        """The op by the backend in force, differentiable any number of times."""
        tensors, options = arguments[: self._count], arguments[self._count :]
        request = backends.requested()
        compiling = torch.compiler.is_compiling()
        resolve = backends.resolve if compiling else backends.resolve_eagerly
        number = resolve(request, tensors[0].device)
        # As `transforming` does, which would ask again whether torch compiles.
        if number == backends.REFERENCE or (tracing_inside_transform() if compiling else inside_transform()):
            self._check(*arguments)
            return self._reference.forward(*arguments)
        if compiling or not plain_eager(*tensors):
            return self._forward_operator(*tensors, *self.encode(options), request)
        if torch.is_grad_enabled():
            for t in tensors:  # a generator costs more
                if t is not None and t.requires_grad:
                    return self._function.apply(*tensors, options, number)
        return self.forward_on(number, tensors, options)

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self._package}.{name}")

    def _empty_outputs(self, like: Tensor) -> Any:
        log_det = allocate_log_det(like)
        return (allocate_like(like), log_det) if self._outputs == 2 else log_det

    def forward_on(self, number: int, tensors: Sequence[Any], options: tuple) -> Any:
        if number == backends.REFERENCE:
            self._check(*tensors, *options)
            found = self._reference.forward(*tensors, *options)
            return (allocate_like(tensors[0]).copy_(found[0]), found[1]) if self._outputs == 2 else found
        return self._plan.forward(*launcher(number, self._package), *tensors, *options)

    def backward_on(self, number: int, grads: tuple, saved: tuple, options: tuple, wanted: tuple) -> tuple:
        if number == backends.REFERENCE:
            found = self._reference.backward(*grads, *saved, *options)
            return tuple(allocate_like(s).copy_(g) if w else None for g, s, w in zip(found, saved, wanted))
        return self._plan.backward(*launcher(number, self._package), *grads, *saved, *options, wanted)

    def _gradients(self, grads: tuple, saved: tuple, options: tuple, wanted: tuple, number: int) -> tuple:
        """The gradients of the tensors, by the shortest way that is right."""
        if grads[0] is grads[-1] is None:
            return (None,) * self._count
        if not torch.compiler.is_compiling():
            if batched(*grads) or inside_transform():  # no memory to read, or tangents that a kernel would not see
                return self._reference.backward(*grads, *saved, *options)
            if not torch.is_grad_enabled() and plain_eager(*grads):
                return self.backward_on(number, grads, saved, options, wanted)
        found = self._backward_operator(*grads, *saved, wanted, *self.encode(options), number)
        return tuple(g if w else None for g, w in zip(found, wanted))

    def _forward_implementation(self, *arguments):
        tensors, options = arguments[: self._count], self.decode(arguments[self._count : -1])
        return self.forward_on(backends.resolve(arguments[-1], tensors[0].device), tensors, options)

    def _fake_forward(self, *arguments):
        tensors, options = arguments[: self._count], self.decode(arguments[self._count : -1])
        self._check(*tensors, *options)
        return self._empty_outputs(tensors[0])

    def _split(self, arguments):
        """The arguments of the backward operator: grads, saved, wanted, options, request."""
        grads, saved = self._outputs, self._outputs + self._count
        *rest, request = arguments[saved + 1 :]
        return arguments[:grads], arguments[grads:saved], tuple(arguments[saved]), self.decode(tuple(rest)), request

    def _backward_implementation(self, *arguments):
        grads, saved, wanted, options, request = self._split(arguments)
        found = self.backward_on(backends.resolve(request, saved[0].device), grads, saved, options, wanted)
        return tuple(g if w else saved[0].new_empty(0) for g, w in zip(found, wanted))

    def _fake_backward(self, *arguments):
        _, saved, wanted, _, _ = self._split(arguments)
        return tuple(allocate_like(s) if w else saved[0].new_empty(0) for s, w in zip(saved, wanted))

    def _save(self, ctx, inputs, output) -> None:
        tensors, ctx.options, ctx.request = inputs[: self._count], self.decode(inputs[self._count : -1]), inputs[-1]
        ctx.save_for_backward(*self._reference.saved(tensors, output, ctx.options))
        ctx.set_materialize_grads(False)

    def _differentiate(self, ctx, *grads):
        saved, wanted = ctx.saved_tensors, tuple(ctx.needs_input_grad[: self._count])
        number = backends.resolve(ctx.request, saved[0].device)
        found = self._gradients(grads, saved, ctx.options, wanted, number)
        return *found, *(None,) * (len(ctx.options) + 1)

    def _save_again(self, ctx, inputs, output) -> None:
        grads, saved, _, ctx.options, _ = self._split(inputs)
        ctx.save_for_backward(*grads, *saved)
        ctx.set_materialize_grads(False)

    def _differentiate_again(self, ctx, *grads):
        """Differentiates the reference's backward formula: every further derivative is that of the reference."""

        def formula(*tensors):
            return self._reference.backward(*tensors, *ctx.options)

        needs = ctx.needs_input_grad[: self._outputs + self._count]
        found = registration.differentiate(formula, ctx.saved_tensors, needs, grads)
        return *found, *(None,) * (len(ctx.options) + 2)


class FormOperator(Operator):
    """An operator whose first option is a form, which a schema has as text.

    Subclasses say which: `form` has `spec` and `from_spec`.
    """

    form: Any

    def encode(self, options: tuple) -> tuple:
        form, *rest = options
        return form.spec, *rest

    def decode(self, options: tuple) -> tuple:
        spec, *rest = options
        return self.form.from_spec(spec), *rest


def _autograd_function(operator: Operator) -> type[torch.autograd.Function]:
    """The registered operator without the dispatcher, which costs as much as a small launch."""
    saved = operator._reference.saved

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            *tensors, options, number = arguments
            output = operator.forward_on(number, tensors, options)
            ctx.save_for_backward(*saved(tensors, output, options))
            ctx.rest = (options, number)
            ctx.set_materialize_grads(False)
            return output

        @staticmethod
        def backward(ctx, *grads):
            options, number = ctx.rest
            found = operator._gradients(grads, ctx.saved_tensors, options, ctx.needs_input_grad[:-2], number)
            return *found, None, None

    return Function
