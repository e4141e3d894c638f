"""The workloads of planar and radial flows: stacks of K layers, their passes and whole training steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..ops.cost import Cost
from ..ops.planar import cost as planar_cost
from ..ops.radial import cost as radial_cost
from . import natural, peers, steps
from .workloads import (
    COMPILE,
    DEFAULT,
    EAGER,
    FORWARD,
    FULL,
    FUSED_STEP,
    INVERSE,
    OURS,
    STEP,
    TRAIN,
    Pair,
    Problem,
    Promise,
    Workload,
)

PLANAR, RADIAL = "planar", "radial"
COSTS: dict[str, Any] = {PLANAR: planar_cost, RADIAL: radial_cost}
NATURAL = {
    PLANAR: Pair(natural.planar, None),  # no library inverts tanh, and a loop of Newton's steps is no rival
    RADIAL: Pair(natural.radial, natural.inverse_radial),
}
NORMFLOWS = {PLANAR: peers.normflows_planar, RADIAL: peers.normflows_radial}

# Rows, features and depth, with what is promised of ours over normflows on a CPU: at least, and what we are out for.
SHAPES: Mapping[tuple[int, int, int], Mapping[str, tuple[float, float]]] = {
    (4096, 2, 32): {FORWARD: (55, 69), STEP: (12, 30), FUSED_STEP: (16, 30)},
    (128, 40, 80): {FORWARD: (95, 142), STEP: (20, 60), FUSED_STEP: (40, 60)},
    (65536, 2, 32): {FORWARD: (22, 29)},
}
FLOWJAX: Mapping[tuple[int, int, int], Mapping[str, tuple[float, float]]] = {(128, 40, 80): {STEP: (1.5, 4)}}


def _parameters(op: str, features: int, depth: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """About those that normflows starts from."""
    first, second = (2 * torch.rand(depth, features, generator=random) - 1 for _ in range(2))
    number = torch.rand(depth, generator=random)
    if op == RADIAL:  # p near alpha: near a centre, the gradients of all implementations are mostly rounding otherwise
        alpha = number + 0.5
        return 2 * first, alpha, (alpha * (0.8 + 0.4 * torch.rand(depth, generator=random))).expm1().log()
    scale = (2 / features) ** 0.5
    return scale * first, scale * second, number - 0.5


def _inputs(device: torch.device, op: str, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    rows, features, depth = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=random)
    return tuple(t.to(device) for t in (x, *_parameters(op, features, depth, random)))


def _cost(op: str, inputs: tuple[Tensor, ...], mode: str) -> Cost:
    cost, options = COSTS[op], (mode == INVERSE,) if op == RADIAL else ("tanh", 0.2, mode == INVERSE)
    total = cost.forward(*inputs, *options)
    if mode in (FORWARD, INVERSE):
        return total
    grads = (inputs[0], inputs[0].new_empty(inputs[0].shape[:1]))
    return total + cost.backward(*grads, *inputs, *options)


def _problem(device: torch.device, op: str, shape: tuple[int, int, int], library: str | None = None) -> Problem:
    inputs, plain = _inputs(device, op, shape), NATURAL[op]
    ours = getattr(functional, op)
    training: dict[str, Callable[[str], Callable[[], object]]] = {
        EAGER: functools.partial(steps.of_function, plain.forward, inputs),
        COMPILE: functools.partial(steps.of_compiled, plain.forward, inputs),
        OURS: functools.partial(steps.of_function, ours, inputs),
    }
    layers: dict[str, Callable[[], object]] = {}
    if library == "normflows":
        layers["normflows"] = lambda: NORMFLOWS[op](*inputs[1:]).as_function()
        training["normflows"] = functools.partial(steps.of_layers, NORMFLOWS[op], inputs)
    if library == "flowjax":
        training["flowjax"] = functools.partial(peers.flowjax_planar_step, inputs)
    rows, features, depth = shape
    through, summed = depth * (1 + features), rows * depth * (1 + features)
    # A rounding of z turns the direction from a centre by 1 / r of it, and the least of many distances is small.
    of_x = summed if op == RADIAL else through
    return Problem(
        inputs,
        plain,
        Pair(ours, functools.partial(ours, inverse=True)),
        layers,
        functools.partial(_cost, op, inputs),
        (through, through, of_x, summed, summed, summed),
        training,
    )


def _name(op: str, shape: tuple[int, int, int]) -> str:
    rows, features, depth = shape
    return f"{op} {rows}x{features} K={depth}"


def _point(op: str, axis: str, shape: tuple[int, int, int], size: int) -> Workload:
    build = functools.partial(_problem, op=op, shape=shape)
    return Workload(
        op, f"{_name(op, shape)}, {axis} curve", build, FULL, None, axis=axis, size=size, modes=(FORWARD, TRAIN)
    )


def workloads(op: str) -> Iterator[Workload]:
    """The shapes that promises are made for, flowjax's stack, and the scaling curves."""
    passes = (FORWARD, TRAIN) if op == PLANAR else (FORWARD, INVERSE, TRAIN)
    for shape, promises in SHAPES.items():
        build = functools.partial(_problem, op=op, shape=shape, library="normflows")
        made = tuple(Promise(mode, "normflows", *limits) for mode, limits in promises.items()) if op == PLANAR else ()
        yield Workload(
            op, _name(op, shape), build, DEFAULT, target=True, modes=(*passes, STEP, FUSED_STEP), promises=made
        )
    for shape, promises in FLOWJAX.items() if op == PLANAR else ():
        build = functools.partial(_problem, op=op, shape=shape, library="flowjax")
        made = tuple(Promise(mode, "flowjax", *limits) for mode, limits in promises.items())
        yield Workload(op, f"{_name(op, shape)}, flowjax", build, DEFAULT, modes=(STEP,), promises=made)
    for exponent in range(0, 9, 2):
        yield _point(op, "depth", (512, 8, 2**exponent), 2**exponent)
    for exponent in range(0, 11, 2):
        yield _point(op, "dimension", (512, 2**exponent, 8), 2**exponent)
    for exponent in range(6, 17, 2):
        yield _point(op, "batch", (2**exponent, 8, 8), 2**exponent)
