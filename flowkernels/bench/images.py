"""The workloads of image flows: dequantization, split, squeeze, and activation normalisation with what follows it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import functional
from ..nn.conv1x1 import per_pixel, pointwise
from ..ops.cost import Cost
from ..ops.dequantize import cost as dequantize_cost
from ..ops.split import cost as split_cost
from . import natural
from .counting import count_both, counting
from .workloads import COMPILE, DEFAULT, EAGER, FORWARD, FULL, INVERSE, QUICK, TRAIN, Pair, Problem, Workload

DEQUANTIZE, SPLIT, SQUEEZE, ACTNORM = "dequantize", "split", "squeeze", "actnorm"
PASSES = (FORWARD, TRAIN)

# Geometric means over the workloads marked as targets, on a CPU: what must be, and what we are out for.
TARGETS = {
    (DEQUANTIZE, FORWARD, EAGER): (4.0, 8.0),
    (DEQUANTIZE, FORWARD, COMPILE): (2.0, 4.0),
    (SPLIT, FORWARD, EAGER): (4.0, 8.0),
    (SPLIT, FORWARD, COMPILE): (2.0, 4.0),
}

Shape = tuple[int, ...]
MNIST, CIFAR = (128, 1, 28, 28), (64, 3, 32, 32)
DEQUANTIZED: tuple[Shape, ...] = (MNIST, CIFAR, (1024, 3, 32, 32))
SCORED: tuple[Shape, ...] = ((128, 8, 14, 14), (64, 12, 16, 16), (64, 48, 16, 16))
SQUEEZED: tuple[Shape, ...] = (MNIST, CIFAR, SCORED[1])
NORMALISED: tuple[Shape, ...] = (SCORED[1], (16, 48, 32, 32))


def _random(device: torch.device, *shapes: Shape) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(device) for shape in shapes]


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))


def counted(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], mode: str) -> Cost:
    """The cost of what consists of torch's own operations, which is its floor."""
    if mode == TRAIN:
        forward, backward = count_both(function, inputs, [torch.ones_like(t) for t in function(*inputs)])
        count = forward + backward
    else:
        with counting() as count:
            function(*inputs)
    return Cost(count.launches, count.read, count.written, count.bytes)


def _dequantize(device: torch.device, shape: Shape) -> Problem:
    random = torch.Generator().manual_seed(0)
    # Away from both ends, where the natural formula loses digits of 1 - q.
    x = torch.randint(8, 248, shape, generator=random, dtype=torch.uint8).to(device)
    noise = torch.rand(shape, generator=random).to(device)

    def cost(mode: str) -> Cost:
        total = dequantize_cost.forward(noise, x, 256, natural.ALPHA)
        if mode == TRAIN:
            total += dequantize_cost.backward(noise, noise.new_empty(shape[0]), noise, None, 256, natural.ALPHA)
        return total

    return Problem(
        (noise,),
        Pair(functools.partial(natural.dequantize, x), None),
        Pair(lambda noise: functional.dequantize(x, noise), None),
        {},
        cost,
        (16, math.prod(shape[1:]), 16),
    )


def _split(device: torch.device, shape: Shape, learned: bool) -> Problem:
    half = (shape[0], shape[1] // 2, *shape[2:])
    x, *prior = _random(device, shape, *([half] * 2 if learned else []))

    def cost(mode: str) -> Cost:
        scored = (x.chunk(2, 1)[1], *prior, *[None] * (2 - len(prior)))
        total = split_cost.forward(*scored)
        if mode == TRAIN:
            # torch joins the gradients of the halves.
            size = x.numel() * x.element_size()
            total += split_cost.backward(x.new_empty(shape[0]), *scored) + Cost(1, size, size, 0)
        return total

    def ours(x: Tensor, *prior: Tensor) -> tuple[Tensor, Tensor]:
        kept, _, log_prob = functional.split(x, *prior)
        return kept, log_prob

    terms = math.prod(half[1:])
    return Problem(
        (x, *prior),
        Pair(natural.split_learned if learned else natural.split, None),
        Pair(ours, None),
        {},
        cost,
        (1, terms, 4, 4, 4),
        outputs=(torch.Size(half), torch.Size(shape[:1])),
    )


def _squeeze(device: torch.device, shape: Shape, back: bool) -> Problem:
    (x,) = _random(device, shape)
    plain, move = (natural.unsqueeze, functional.unsqueeze) if back else (natural.squeeze, functional.squeeze)

    def ours(x: Tensor) -> tuple[Tensor]:
        return (move(x),)

    cost = functools.partial(counted, ours, (x,))
    return Problem((x,), Pair(plain, None), Pair(ours, None), {}, cost, (1, 1), outputs=(plain(x)[0].shape,))


def _actnorm(device: torch.device, shape: Shape) -> Problem:
    x, log_scale, shift = _random(device, shape, shape[1:2], shape[1:2])
    terms = math.prod(shape)

    def ours(*inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return functional.actnorm(*inputs, inverse=inverse)

    def cost(mode: str) -> Cost:
        return counted(functools.partial(ours, inverse=mode == INVERSE), (x, log_scale, shift), mode)

    return Problem(
        (x, log_scale, shift),
        Pair(natural.actnorm, natural.inverse_actnorm),
        Pair(ours, functools.partial(ours, inverse=True)),
        {},
        cost,
        (1, terms, 1, terms, terms),
    )


def _mixed(device: torch.device, shape: Shape) -> Problem:
    """Activation normalisation and an invertible 1x1 convolution: apart, and as the one convolution that they are."""
    channels = shape[1]
    x, log_scale, shift, weight = _random(device, shape, (channels,), (channels,), (channels, channels))
    log_scale, weight = 0.1 * log_scale, torch.linalg.qr(weight)[0]

    def apart(x: Tensor, log_scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = functional.actnorm(x, log_scale, shift)
        return pointwise(y, weight), log_det + per_pixel(torch.linalg.slogdet(weight)[1], x)

    def folded(x: Tensor, log_scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.linalg.slogdet(weight)[1] + log_scale.sum()
        return pointwise(x, weight * log_scale.exp(), weight @ shift), per_pixel(log_det, x)

    inputs = (x, log_scale, shift, weight)
    terms = 16 * math.prod(shape)
    return Problem(
        inputs,
        Pair(natural.actnorm_conv1x1, None),
        Pair(folded, None),
        {"apart": lambda: Pair(apart, None)},
        functools.partial(counted, folded, inputs),
        (shape[1], terms, shape[1], terms, terms, terms),
    )


def workloads() -> Iterator[Workload]:
    """Images as they come, and the half that a split scores after one or two squeezes."""
    for shape in DEQUANTIZED:
        build = functools.partial(_dequantize, shape=shape)
        level, compiled = (QUICK, DEFAULT) if shape == MNIST else (DEFAULT, FULL)
        yield Workload(DEQUANTIZE, f"dequantize {_name(shape)}", build, level, compiled, target=True, modes=PASSES)
    for shape in SCORED:
        for learned in (False, True):
            name = f"split {_name(shape)}, {'learned' if learned else 'standard'} prior"
            build = functools.partial(_split, shape=shape, learned=learned)
            level, compiled = (QUICK, DEFAULT) if shape == SCORED[0] else (DEFAULT, FULL)
            yield Workload(SPLIT, name, build, level, compiled, target=True, modes=PASSES)
    for shape in SQUEEZED:
        build = functools.partial(_squeeze, shape=shape, back=False)
        yield Workload(SQUEEZE, f"squeeze {_name(shape)}", build, modes=PASSES)
    build = functools.partial(_squeeze, shape=SCORED[1], back=True)
    yield Workload(SQUEEZE, f"unsqueeze {_name(SCORED[1])}", build, modes=PASSES)
    for shape in NORMALISED:
        yield Workload(ACTNORM, f"actnorm {_name(shape)}", functools.partial(_actnorm, shape=shape))
        build = functools.partial(_mixed, shape=shape)
        yield Workload(ACTNORM, f"actnorm and 1x1 {_name(shape)}", build, modes=PASSES)
