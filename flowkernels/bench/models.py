"""The workloads of whole models: one step of Glow, and the multi-scale flow of the UvA tutorials, networks and all.

They are functions of the input and of every parameter, so that passes, launches and bytes are those of training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .. import backends
from ..flows import Flow
from ..models import uva
from ..models.glow import step
from . import natural
from .images import counted
from .workloads import FORWARD, TRAIN, Pair, Problem, Workload

MODEL = "model"
PASSES = (FORWARD, TRAIN)
TERMS = 1_000_000  # roundings pass through convolutions that sum thousands of products


class _Written(nn.Module):
    """Natural code as a module with the parameters of a flow, so that both are called in the same way."""

    def __init__(self, flow: Flow, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.flow, self.function = flow, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.flow.parameters())[0]


def _function(model: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """The log-density as a function of x and the parameters."""
    names = [name for name, _ in model.named_parameters()]

    def log_prob(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return (torch.func.functional_call(model, dict(zip(names, parameters)), (x,)),)

    return log_prob


def _spread_out(flow: Flow) -> None:
    """Parameters away from where they start, which is the identity: an error of theirs would not show there."""
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.02 * torch.randn(p.shape))


def _problem(flow: Flow, x: Tensor, eager: Callable[..., tuple[Tensor, ...]] | None) -> Problem:
    _spread_out(flow)
    flow.to(x.device).eval()  # nothing is initialised by data
    ours = _function(flow)
    inputs = (x, *(p.detach().clone() for p in flow.parameters()))

    def reference(*arguments: Tensor) -> tuple[Tensor, ...]:
        with backends.backend("reference"):
            return ours(*arguments)

    return Problem(
        inputs,
        Pair(reference if eager is None else _function(_Written(flow, eager)), None),
        Pair(ours, None),
        {},
        functools.partial(counted, ours, inputs),
        (TERMS,) * (1 + len(inputs)),
        outputs=(x.shape[:1],),
    )


def _glow_step(device: torch.device, shape: tuple[int, int, int, int]) -> Problem:
    torch.manual_seed(1)  # no unit is nearer than 3e-6 to 0 then, where roundings would decide the gradient of its ReLU
    flow = Flow(step(shape[1], hidden=32), event_shape=shape[1:])
    return _problem(flow, torch.randn(shape).to(device), natural.glow_step)


def _multiscale(device: torch.device, rows: int) -> Problem:
    """Without its dequantization, whose noise would be other numbers for each implementation."""
    torch.manual_seed(0)
    whole = uva("multiscale")
    flow = Flow(whole.layers[1:], event_shape=whole.event_shape)
    return _problem(flow, torch.randn(rows, 1, 28, 28).to(device), None)


def workloads() -> Iterator[Workload]:
    """With their networks; `eager` is natural code for the step of Glow, the reference backend for the flow."""
    for shape in ((16, 12, 16, 16), (16, 48, 8, 8)):
        name = f"glow step {'x'.join(map(str, shape))}"
        yield Workload(MODEL, name, functools.partial(_glow_step, shape=shape), modes=PASSES)
    yield Workload(MODEL, "uva multiscale 16x1x28x28", functools.partial(_multiscale, rows=16), modes=PASSES)
