"""Training steps: forward pass, negative log-likelihood, backward pass and, in two of the modes, Adam. The gradients
alone are those of `torch.autograd.grad`: to clear and to accumulate them is a matter of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .workloads import FUSED_STEP, GRADIENTS

LEARNING_RATE = 1e-5  # small: a step is repeated hundreds of times, and should stay the same problem


def loss(z: Tensor, log_det: Tensor) -> Tensor:
    """The negative log-likelihood under a standard normal distribution, without its constant."""
    return 0.5 * z.square().sum(1).mean() - log_det.mean()


def of_parameters(
    forward: Callable[[], tuple[Tensor, Tensor]], parameters: Sequence[Tensor], mode: str
) -> Callable[[], Tensor]:
    """A step that changes `parameters` where the mode has an optimiser, and returns the loss before it does."""
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=mode == FUSED_STEP or None)

    trained = [p for p in parameters if p.requires_grad]

    def step():
        with torch.enable_grad():
            value = loss(*forward())
            if mode == GRADIENTS:
                torch.autograd.grad(value, trained, allow_unused=True)
                return value.detach()
            optimizer.zero_grad()
            value.backward()
        optimizer.step()
        return value.detach()

    return step


def of_function(function: Callable, inputs: tuple[Tensor, ...], mode: str) -> Callable[[], Tensor]:
    """With a function of x and the parameters, which are those three tensors."""
    x, *rest = inputs
    parameters = [p.detach().clone().requires_grad_() for p in rest]
    return of_parameters(lambda: function(x, *parameters), parameters, mode)


def of_compiled(function: Callable, inputs: tuple[Tensor, ...], mode: str) -> Callable[[], Tensor]:
    """The same under torch.compile."""
    torch._dynamo.reset()
    return of_function(torch.compile(function, dynamic=False, fullgraph=True), inputs, mode)


def of_layers(make: Callable, inputs: tuple[Tensor, ...], mode: str) -> Callable[[], Tensor]:
    """With a library's own layers, each of which has its own parameters."""
    x, *rest = inputs
    layers = make(*rest)
    return of_parameters(lambda: layers(x), list(layers.parameters()), mode)
