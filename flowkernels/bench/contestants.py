"""The implementations of a workload in one mode, each ready to be called, checked and timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .counting import Count, count_both, counting
from .peers import Jitted
from .steps import loss
from .workloads import COMPILE, STEPS, TRAIN, Problem


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One implementation.

    Args:
        run: what is timed.
        values: the tensors in what `run` returned: y and log_det, then the gradients of the inputs in training; the
            loss of a training step. None where a library's parameters mean something else, and nothing can be compared.
        count: launches and bytes, where they can be counted.
        on_torch: whether torch's allocator serves it, so that its memory can be measured.
    """

    name: str
    run: Callable[[], object]
    values: Callable[[Any], Sequence[Tensor] | None]
    count: Callable[[], Count | None] = lambda: None
    on_torch: bool = True


def cotangents(problem: Problem) -> tuple[Tensor, ...]:
    """Fixed gradients of the outputs."""
    random, device = torch.Generator().manual_seed(1), problem.inputs[0].device
    return tuple(torch.randn(shape, generator=random).to(device) for shape in problem.output_shapes)


def of_torch(name: str, function: Callable, problem: Problem, mode: str, counted: bool) -> Contestant:
    """An implementation that takes and returns torch tensors."""
    inputs, grads = problem.inputs, cotangents(problem)
    if mode == TRAIN:
        leaves = [t.detach().requires_grad_() for t in inputs]

        def run():
            with torch.enable_grad():
                outputs = function(*leaves)
            return *outputs, *torch.autograd.grad(outputs, leaves, grads)

        def count():
            forward, backward = count_both(function, inputs, grads)
            return forward + backward

    else:

        def run():
            return function(*inputs)

        def count():
            with counting() as forward:
                function(*inputs)
            return forward

    return Contestant(name, run, lambda outputs: outputs, count if counted else lambda: None)


def of_jax(name: str, jitted: Jitted, problem: Problem, mode: str) -> Contestant:
    """An implementation in JAX, whose arrays stay on its side while it is timed."""
    arrays = jitted.arrays(*problem.inputs)
    if mode == TRAIN:
        arrays += tuple(jitted.jax.numpy.asarray(g.numpy()) for g in cotangents(problem))
    function = jitted.train if mode == TRAIN else jitted.pair.of(mode)
    shapes = [t.shape for t in problem.inputs]

    def values(outputs):
        leaves = [torch.tensor(leaf.__array__()) for leaf in jitted.jax.tree.leaves(outputs)]
        return [*leaves[:2], *(g.reshape(s) for g, s in zip(leaves[2:], shapes))]

    return Contestant(name, lambda: jitted.jax.block_until_ready(function(*arrays)), values, on_torch=False)


def of_step(name: str, make: Callable[[str], Callable[[], object]], mode: str) -> Contestant:
    """A training step. One in JAX returns no tensor, and has parameters of another meaning."""
    run = make(mode)
    return Contestant(
        name, run, lambda value: [value.reshape(1)] if isinstance(value, Tensor) else None, on_torch=False
    )


def compiled(problem: Problem, mode: str) -> Contestant:
    """The natural code under torch.compile, for these shapes alone, and with what compiled before forgotten."""
    torch._dynamo.reset()
    function = torch.compile(problem.natural.of(mode), dynamic=False, fullgraph=True)
    return of_torch(COMPILE, function, problem, mode, counted=False)


def truth(problem: Problem, mode: str) -> list[Tensor]:
    """What the natural code gives in float64."""
    inputs = [t.detach().double().requires_grad_(mode == TRAIN) for t in problem.inputs]
    with torch.set_grad_enabled(mode == TRAIN):
        outputs = problem.natural.of(mode)(*inputs)
    if mode in STEPS:
        return [loss(*outputs).reshape(1)]
    if mode != TRAIN:
        return list(outputs)
    grads = torch.autograd.grad(outputs, inputs, [g.double() for g in cotangents(problem)])
    return [t.detach() for t in (*outputs, *grads)]
