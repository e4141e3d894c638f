"""The workloads of whole flows: models of other libraries before and after `accelerate`, and a neural spline flow of
ours beside flowjax's. Each function that builds another library's model imports it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import backends, models
from ..integrations import accelerate
from ..ops.cost import Cost
from . import peers, steps
from .models import MODEL, TERMS
from .workloads import DEFAULT, EAGER, GRADIENTS, OURS, STEP, Pair, Problem, Promise, Workload

ACCELERATE = "accelerate"


class Side(NamedTuple):
    """A model, and how its log-density is computed."""

    model: nn.Module
    log_prob: Callable[[Any, Tensor], Tensor]

    def outputs(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `steps.loss` takes: all of the density as a log-determinant."""
        return x.new_zeros(len(x), 1), self.log_prob(model, x)

    def step(self, x: Tensor, mode: str) -> Callable[[], Tensor]:
        """A training step with parameters of its own."""
        model = copy.deepcopy(self.model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return steps.of_parameters(lambda: self.outputs(model, x), parameters, mode)


def _problem(
    x: Tensor, eager: Side, ours: Side, others: Mapping[str, Callable[[str], Callable[[], object]]] | None = None
) -> Problem:
    def exact(x: Tensor) -> tuple[Tensor, ...]:
        return eager.outputs(copy.deepcopy(eager.model).to(x.dtype), x)

    training = {EAGER: functools.partial(eager.step, x), OURS: functools.partial(ours.step, x), **(others or {})}
    return Problem((x,), Pair(exact, None), Pair(exact, None), {}, lambda mode: Cost(0, 0, 0, 0), (TERMS,), training)


def _accelerated(device: torch.device, make: Callable[[], Side], shape: tuple[int, ...]) -> Problem:
    torch.manual_seed(0)
    side = make()
    x = torch.randn(shape).to(device)
    side.model.to(device)
    side.log_prob(side.model, x)  # initialises what depends on data
    faster = copy.deepcopy(side.model)
    accelerate(faster)
    return _problem(x, side, Side(faster, side.log_prob))


def _nsf(device: torch.device, rows: int, features: int, depth: int, hidden: int) -> Problem:
    """The splines of flowjax's layers lie in the same box; `eager` is the reference backend."""
    torch.manual_seed(0)
    flow = models.nsf(features, transforms=depth, hidden=(hidden, hidden)).to(device)
    x = torch.randn(rows, features).to(device)

    def ours(flow: nn.Module, x: Tensor) -> Tensor:
        return flow(x)

    def eager(flow: nn.Module, x: Tensor) -> Tensor:
        with backends.backend("reference"):
            return flow(x)

    flowjax = functools.partial(peers.flowjax_spline_step, x, depth, hidden, 8, 3.0)
    return _problem(x, Side(flow, eager), Side(flow, ours), {"flowjax": flowjax})


def _log_prob(model: Any, x: Tensor) -> Tensor:
    return model.log_prob(x)


def normflows_realnvp() -> Side:
    """32 coupling layers of two features with networks of 64, as in the library's first example."""
    nf = peers.load("normflows")
    flows: list[nn.Module] = []
    for _ in range(32):
        flows.append(nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 64, 64, 2], init_zeros=True)))
        flows.append(nf.flows.Permute(2, mode="swap"))
    return Side(nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows), _log_prob)


def normflows_nsf() -> Side:
    """8 coupling layers of splines, with a linear map after each."""
    nf = peers.load("normflows")
    flows: list[nn.Module] = []
    for _ in range(8):
        flows.append(nf.flows.CoupledRationalQuadraticSpline(16, 2, 128))
        flows.append(nf.flows.LULinearPermute(16))
    return Side(nf.NormalizingFlow(nf.distributions.DiagGaussian(16), flows), _log_prob)


def normflows_planar() -> Side:
    """80 planar layers of 40 features. They map from latents: the loss is of what they make of x."""
    nf = peers.load("normflows")
    flows = [nf.flows.Planar((40,)) for _ in range(80)]

    def reverse(model, x: Tensor) -> Tensor:
        z, log_det = model.forward_and_log_det(x)
        return log_det - 0.5 * z.square().sum(1)

    return Side(nf.NormalizingFlow(nf.distributions.DiagGaussian(40), flows), reverse)


def normflows_glow() -> Side:
    """Three scales of eight steps with networks of 32 channels, for 3x32x32."""
    nf = peers.load("normflows")
    bases, flows = [], []
    for i in range(3):
        channels, side = 3 * 2 ** (4 - i), 2 ** (2 + i)
        flows.append([*(nf.flows.GlowBlock(channels, 32) for _ in range(8)), nf.flows.Squeeze()])
        bases.append(nf.distributions.DiagGaussian((channels if i == 0 else channels // 2, side, side)))
    model = nf.MultiscaleFlow(bases, flows, [nf.flows.Merge(), nf.flows.Merge()], class_cond=False)
    return Side(model, lambda model, x: model.log_prob(x, None))


def nflows_nsf() -> Side:
    """8 coupling layers of splines with residual networks of 128."""
    flows, transforms = peers.load("nflows.flows"), peers.load("nflows.transforms")
    nets, distributions = peers.load("nflows.nn.nets"), peers.load("nflows.distributions")
    layers = []
    for i in range(8):
        layers.append(
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                (torch.arange(16) + i) % 2,
                lambda inputs, outputs: nets.ResidualNet(inputs, outputs, hidden_features=128),
                num_bins=8,
                tails="linear",
                tail_bound=3.0,
            )
        )
    return Side(flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal((16,))), _log_prob)


def zuko_nsf() -> Side:
    """8 coupling layers of splines with networks of 128 twice."""
    flows = peers.load("zuko.flows")
    model = flows.NSF(16, bins=8, transforms=8, hidden_features=(128, 128), passes=2)
    return Side(model, lambda model, x: model().log_prob(x))


def freia_glow() -> Side:
    """8 two-sided coupling blocks of 16 features with networks of 128."""
    modules, framework = peers.load("FrEIA.modules"), peers.load("FrEIA.framework")

    def network(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, outputs))

    model = framework.SequenceINN(16)
    for _ in range(8):
        model.append(modules.GLOWCouplingBlock, subnet_constructor=network)
        model.append(modules.PermuteRandom)

    def log_prob(model, x: Tensor) -> Tensor:
        z, log_det = model(x)
        return log_det - 0.5 * z.square().sum(1)

    return Side(model, log_prob)


# Of ours over the library's own step: at least, and what we are out for.
MODELS: tuple[tuple[str, Callable[[], Side], tuple[int, ...], Mapping[str, tuple[float, float]]], ...] = (
    ("normflows RealNVP 2-D K=32", normflows_realnvp, (512, 2), {STEP: (1.6, 5)}),
    ("normflows NSF D=16 K=8", normflows_nsf, (512, 16), {STEP: (3, 4)}),
    ("normflows planar D=40 K=80", normflows_planar, (128, 40), {STEP: (4, 6), GRADIENTS: (15, 30)}),
    ("normflows Glow L=3 K=8", normflows_glow, (16, 3, 32, 32), {STEP: (1.2, 1.4)}),
    ("nflows NSF D=16 K=8", nflows_nsf, (512, 16), {}),
    ("zuko NSF D=16 K=8", zuko_nsf, (512, 16), {}),
    ("FrEIA GLOW D=16 K=8", freia_glow, (512, 16), {}),
)


def workloads() -> Iterator[Workload]:
    """Whole models by `accelerate` alone, and a flow of ours."""
    for name, make, shape, promises in MODELS:
        yield Workload(
            ACCELERATE,
            name,
            functools.partial(_accelerated, make=make, shape=shape),
            DEFAULT,
            None,
            modes=(STEP, GRADIENTS),
            promises=tuple(Promise(mode, EAGER, *limits) for mode, limits in promises.items()),
        )
    build = functools.partial(_nsf, rows=512, features=16, depth=8, hidden=128)
    yield Workload(MODEL, "nsf 512x16, 8 layers", build, DEFAULT, None, modes=(STEP,))
