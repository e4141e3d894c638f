"""Linear layers with a leaky ReLU between them, on the CPU as one node of autograd's graph. Torch runs a perceptron as
many small calls, and its products with a few columns take several times as long as their transposes.

Residual perceptrons too: a linear layer, blocks of two, each behind a leaky ReLU, whose output is added to the block's
input, and a linear layer.

It is no operator, and has no backends: where the compiled module does not take a call, the caller's own layers run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import backends
from .._compat import inside_transform, plain, plain_eager, readable
from .native import cpu_module
from .plans import plans, remember

MOST_LAYERS = 8  # as kMostLayers in csrc/cpu/perceptron.h
TILE = 64  # rows, as kPerceptronRows there
WIDEST, WIDEST_OF_FEW = 256, 64  # beyond, torch's products are as fast: of FEW rows, less than a tile, sooner
FEW = 48


def run(net: nn.Sequential, x: Tensor) -> Tensor | None:
    """What `net` returns for x, or None where it has to be called."""
    if not takes(x):
        return None
    found = read(net)
    return None if found is None else perceptron(x, *found)


def takes(x: object) -> bool:
    """Whether it is worthwhile to look at what x goes through."""
    return not torch.compiler.is_compiling() and isinstance(x, Tensor) and x.is_cpu


def read(net: nn.Sequential) -> tuple[list[Tensor], float] | None:
    """Parameters and slope of linear layers with biases and activations of one kind between; None for anything else."""
    if type(net) is not nn.Sequential or not plain(net):  # a subclass may do anything with its layers
        return None
    layers = list(net)
    linear, activations = layers[::2], layers[1::2]
    if len(linear) != len(activations) + 1:
        return None
    parameters, slopes = read_linear(linear), {slope_of(layer) for layer in activations}
    slope = slopes.pop() if slopes else 1.0
    return None if slopes or slope is None or parameters is None else (parameters, slope)


def read_linear(layers: Iterable[nn.Module]) -> list[Tensor] | None:
    """Weight and bias of each layer, in turn; None unless all are linear, with biases."""
    parameters = []
    for layer in layers:
        if type(layer) is not nn.Linear or layer.bias is None or not plain(layer):
            return None
        parameters += [layer.weight, layer.bias]
    return parameters


def slope_of(layer: nn.Module) -> float | None:
    if not plain(layer):
        return None
    return 0.0 if type(layer) is nn.ReLU else layer.negative_slope if type(layer) is nn.LeakyReLU else None


def activate(x: Tensor, slope: float) -> Tensor:
    """A leaky ReLU, or a ReLU, which makes 0 of minus infinity."""
    return F.leaky_relu(x, slope) if slope else F.relu(x)


def deactivate(grad: Tensor, unit: Tensor, slope: float) -> Tensor:
    """The gradient of what `activate` made `unit` of."""
    return torch.where(unit > 0, grad, grad * slope) if slope else grad.masked_fill(unit <= 0, 0)


def perceptron(x: Tensor, parameters: Sequence[Tensor], slope: float, residual: bool = False) -> Tensor | None:
    """The output for x of shape (B, features), or None where torch's own functions are to run.

    Args:
        x: any strides.
        parameters: weight and bias of each layer, in turn.
        slope: of the activations below zero.
        residual: whether the layers between the first and the last are blocks of two.
    """
    net = native(x, parameters, slope, residual)
    if net is None:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return _Function.apply(net, slope, x, *parameters)  # type: ignore[no-any-return, no-untyped-call]
    return forward(net, x, parameters, None)


def native(x: Tensor, parameters: Sequence[Tensor], slope: float, residual: bool = False) -> Any:
    """What runs the call, if the compiled module does."""
    if inside_transform() or not plain_eager(x, *parameters):
        return None
    if x.dim() != 2 or x.dtype is not torch.float32 or not x.is_cpu or torch.is_autocast_enabled("cpu"):
        return None
    kinds = [(p.shape, p.dtype, p.device) for p in parameters]
    key = ("perceptron", backends.requested(), slope, residual, x.shape, *kinds)
    if key not in plans:
        remember(key, _made(x, parameters, slope, residual))
    return plans[key] if all(p.is_contiguous() for p in parameters) else None


def _made(x: Tensor, parameters: Sequence[Tensor], slope: float, residual: bool) -> Any:
    module = cpu_module()
    sizes = [x.shape[1], *[bias.shape[0] for bias in parameters[1::2]]]
    shapes = [shape for a, b in itertools.pairwise(sizes) for shape in ((b, a), (b,))]
    if module is None:
        return None
    if any(p.shape != s or p.dtype != torch.float32 or not p.is_cpu for p, s in zip(parameters, shapes)):
        return None
    if not (slope >= 0 and 1 < len(sizes) <= MOST_LAYERS + 1 and len(parameters) == 2 * len(sizes) - 2):
        return None
    if residual and (len(sizes) % 2 == 0 or len({*sizes[1:-1:2]}) > 1):
        return None
    rows, widest = x.shape[0], WIDEST_OF_FEW if x.shape[0] < FEW else WIDEST
    return module.Perceptron(sizes, slope, residual) if rows > 0 and min(sizes) > 0 and max(sizes) <= widest else None


def empty_hidden(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Room for the hidden units that backward reads."""
    units = sum([bias.shape[0] for bias in parameters[1:-1:2]])
    return x.new_empty(math.ceil(x.shape[0] / TILE) * TILE * units)


def forward(net: Any, x: Tensor, parameters: Sequence[Tensor], hidden: Tensor | None) -> Tensor:
    """What `native` found runs; `hidden`, from `empty_hidden`, is written where there is a backward to come."""
    y = x.new_empty(x.shape[0], parameters[-1].shape[0])
    kept = 0 if hidden is None else hidden.data_ptr()
    net.forward(x.shape[0], x.data_ptr(), x.stride(), [p.data_ptr() for p in parameters], y.data_ptr(), kept)
    return y


def backward(
    net: Any, grad: Tensor, x: Tensor, parameters: Sequence[Tensor], hidden: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of x and the parameters, those that are wanted."""
    found = [
        torch.empty_like(t, memory_format=torch.contiguous_format) if w else None
        for t, w in zip((x, *parameters), wanted)
    ]
    grad_x, *grads = [0 if t is None else t.data_ptr() for t in found]
    addresses = [p.data_ptr() for p in parameters]
    given = grad.data_ptr(), grad.stride(), x.data_ptr(), x.stride(), addresses, hidden.data_ptr()
    net.backward(x.shape[0], *given, grad_x, grads)
    return found


def backward_formula(
    grad: Tensor, x: Tensor, parameters: Sequence[Tensor], slope: float, residual: bool = False
) -> list[Tensor]:
    """The gradients of x and the parameters in torch's own functions, which can be differentiated again."""
    inputs, last = [x], len(parameters) // 2 - 1
    total: Tensor | float = 0.0
    for i in range(last):
        y = F.linear(inputs[-1], *parameters[2 * i : 2 * i + 2])
        if residual and i % 2 == 0:
            total = y = total + y
        inputs.append(y if residual and i + 1 == last else activate(y, slope))
    found: list[Tensor] = []
    of_block = grad
    for i in reversed(range(len(inputs))):
        found = [grad.transpose(-1, -2) @ inputs[i], grad.sum(-2), *found]
        of_input = grad @ parameters[2 * i]
        if i > 0 and not (residual and i == last):
            of_input = deactivate(of_input, inputs[i], slope)
        if residual and i % 2 == 1 and i < last:
            of_input = of_input + of_block
        grad, of_block = of_input, grad
    return [grad, *found]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net, slope, x, *parameters):  # type: ignore[no-untyped-def]
        hidden = empty_hidden(x, parameters)
        ctx.save_for_backward(hidden, x, *parameters)
        ctx.net, ctx.slope = net, slope
        ctx.set_materialize_grads(False)
        return forward(net, x, parameters, hidden)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        wanted = ctx.needs_input_grad[2:]
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        hidden, x, *parameters = ctx.saved_tensors
        if not readable(grad):
            found = backward_formula(grad, x, parameters, ctx.slope, ctx.net.residual)
            return None, None, *[g if w else None for g, w in zip(found, wanted)]
        return None, None, *backward(ctx.net, grad, x, parameters, hidden, wanted)
