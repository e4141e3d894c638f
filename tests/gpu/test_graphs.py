"""CUDA graphs and torch.compile: capture after `fk.warmup`, and inductor's code around ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import flowkernels as fk

from .calls import TANH, leaves, same
from .conftest import require

pytestmark = pytest.mark.gpu


class Coupling(nn.Module):
    """The operation as a module."""

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return fk.affine_coupling(x, raw, form=TANH)


def step(model: nn.Module, inputs: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """The outputs of a model and the gradients of what `fk.warmup` takes for its loss."""
    outputs = model(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(t.sum() if t.dim() == 1 else t.square().sum() / 2 for t in outputs)
    return [*outputs, *torch.autograd.grad(loss, parameters)]


def captured(model: nn.Module, inputs: list[Tensor], parameters: list[Tensor]):
    """A graph of `step`, and the tensors that it writes."""
    fk.warmup(model, tuple(inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(model, inputs, parameters)
    return graph, outputs


def write(targets: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values):
            target.copy_(value)


# One launch each way; a long row, whose second launch reads a workspace.
@pytest.mark.parametrize("shape", [(512, 64), (4, 65536)], ids=str)
def test_the_operation_in_a_cuda_graph(backend, device, shape):
    model, inputs = Coupling(), leaves(shape, device)
    with fk.backend(backend):
        graph, outputs = captured(model, inputs, inputs)
        for _ in range(3):
            write(inputs, leaves(shape, device))
            graph.replay()
            torch.cuda.synchronize(device)
            replayed = [t.clone() for t in outputs]
            assert same(replayed, step(model, inputs, inputs))


def test_a_flow_in_a_cuda_graph(backend, device):
    flow = fk.models.realnvp(6, transforms=4).to(device)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(256, 6, device=device)
    parameters = list(flow.parameters())
    with fk.backend(backend):
        graph, outputs = captured(flow, [x], parameters)
        for _ in range(3):
            write([x], [torch.randn_like(x)])
            graph.replay()
            torch.cuda.synchronize(device)
            replayed = [t.clone() for t in outputs]
            for value, truth in zip(replayed, step(flow, [x], parameters), strict=True):
                torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4)


def surrounded(x: Tensor, raw: Tensor) -> Tensor:
    """The operation between others, which inductor fuses."""
    y, log_det = fk.affine_coupling(x.sin() + 1, raw * 0.5, form=TANH)
    return (y.square() * 0.5).sum(1) - log_det


@pytest.mark.parametrize("mode, dynamic", [(None, False), (None, True), ("reduce-overhead", False)], ids=str)
def test_inductor(backend, device, mode, dynamic):
    require("triton", device)  # inductor's own kernels
    torch._dynamo.reset()
    compiled = torch.compile(surrounded, fullgraph=True, dynamic=dynamic, mode=mode)
    with fk.backend(backend):
        for rows in (64, 96) if dynamic else (64, 64, 64, 64):  # CUDA graphs are recorded in the second call
            tensors = leaves((rows, 48), device)
            results = []
            for function in (compiled, surrounded):
                torch.compiler.cudagraph_mark_step_begin()
                value = function(*tensors)
                # Cloned, since the next replay writes where this one did.
                results.append([t.clone() for t in (value, *torch.autograd.grad(value.sum(), tensors))])
            for found, expected in zip(*results):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
