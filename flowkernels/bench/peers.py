"""Other libraries' own layers. Of couplings, given the output of their conditioner, the coupling alone is measured.

Each function imports its library.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .steps import LEARNING_RATE
from .workloads import Pair


def load(name: str) -> ModuleType:
    """A module of another library; ImportError where that is not installed."""
    # Some of these libraries warn on import about what does not concern us.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


class _Given(torch.nn.Module):
    """A conditioner that returns what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = [torch.empty(0)]  # a list: assigning a tensor to a module's attribute takes a while

    def forward(self, *_: object) -> Tensor:
        return self.held[0]


def normflows_sigmoid(x: Tensor, raw: Tensor) -> Pair:
    """normflows' AffineCouplingBlock; its forward is our formula."""
    flows = load("normflows.flows")
    given = _Given()
    block = flows.AffineCouplingBlock(given, scale_map="sigmoid")

    def forward(x, raw):
        given.held[0] = raw
        return block(x)

    def inverse(y, raw):
        given.held[0] = raw
        return block.inverse(y)

    return Pair(forward, inverse)


def nflows_sigmoid(x: Tensor, raw: Tensor) -> Pair:
    """nflows' AffineCouplingTransform, which transforms where its mask is 1."""
    coupling = load("nflows.transforms.coupling")
    given = _Given()
    mask = (torch.arange(x.shape[1]) >= x.shape[1] // 2).int()
    layer = coupling.AffineCouplingTransform(mask, lambda inputs, outputs: given).to(x.device)

    def forward(x, raw):
        given.held[0] = raw
        return layer(x)

    def inverse(y, raw):
        given.held[0] = raw
        return layer.inverse(y)

    return Pair(forward, inverse)


def nflows_spline(x: Tensor, raw: Tensor) -> Pair:
    """nflows' function, which all of its spline layers call."""
    splines = load("nflows.transforms.splines.rational_quadratic")

    def run(x, raw, inverse=False):
        view = raw.view(*x.shape, -1)
        bins = (view.shape[-1] + 1) // 3
        parts = view[..., :bins], view[..., bins : 2 * bins], view[..., 2 * bins :]
        y, log_slope = splines.unconstrained_rational_quadratic_spline(x, *parts, inverse, tail_bound=3.0)
        return y, log_slope.sum(1)

    return Pair(run, lambda y, raw: run(y, raw, True))


def freia_atan(x: Tensor, raw: Tensor) -> Pair:
    """FrEIA's AffineCouplingOneSided with its default clamp."""
    modules = load("FrEIA.modules")
    given = _Given()
    layer = modules.AffineCouplingOneSided([tuple(x.shape[1:])], subnet_constructor=lambda inputs, outputs: given)

    def forward(x, raw):
        given.held[0] = raw
        (y,), log_det = layer([x])
        return y, log_det

    def inverse(y, raw):
        given.held[0] = raw
        (x,), log_det = layer([y], rev=True)
        return x, log_det

    return Pair(forward, inverse)


def zuko_softclip(x: Tensor, raw: Tensor) -> Pair:
    """zuko's GeneralCouplingTransform, which keeps where its mask is True."""
    flows = load("zuko.flows")
    given = _Given()
    mask = torch.arange(x.shape[1]) < x.shape[1] // 2
    layer = flows.GeneralCouplingTransform(x.shape[1], mask=mask)
    layer.hyper = given
    layer.to(x.device)

    def forward(x, raw):
        given.held[0] = raw.flatten(1)
        return layer().call_and_ladj(x)

    def inverse(y, raw):
        given.held[0] = raw.flatten(1)
        return layer().inv.call_and_ladj(y)

    return Pair(forward, inverse)


class Jitted:
    """A pair of JAX functions of (x, raw) under jit, with its arrays, and how torch's inputs become them."""

    def __init__(self, forward, inverse, arrays) -> None:
        import jax

        self.jax = jax
        self.arrays = arrays  # from torch tensors (x, raw)
        self.pair = Pair(jax.jit(forward), jax.jit(inverse))

        def train(x, raw, grad_y, grad_log_det):
            outputs, pull_back = jax.vjp(forward, x, raw)
            return outputs, pull_back((grad_y, grad_log_det))

        self.train = jax.jit(train)


def flowjax_softplus(x: Tensor, raw: Tensor) -> Jitted:
    """flowjax's Coupling of Affine under jit and vmap."""
    if x.device.type != "cpu":
        raise ImportError("flowjax is measured on the CPU only")
    logging.getLogger("jax").setLevel(logging.ERROR)
    bijections = load("flowjax.bijections")
    equinox, jax = load("equinox"), load("jax")
    coupling = bijections.Coupling(
        jax.random.key(0),
        transformer=bijections.Affine(),
        untransformed_dim=x.shape[1] // 2,
        dim=x.shape[1],
        nn_width=1,
        nn_depth=0,
    )
    # The parameters are what the conditioner returns plus those of Affine(), whose scale is softplus of this.
    start = torch.tensor([0.0, torch.expm1(torch.tensor(1.0)).log().item()])

    def given(raw):
        return equinox.tree_at(lambda c: c.conditioner, coupling, lambda _: raw.reshape(-1))

    def arrays(x: Tensor, raw: Tensor):
        return jax.numpy.asarray(x.numpy()), jax.numpy.asarray((raw - start).numpy())

    return Jitted(
        jax.vmap(lambda x, raw: given(raw).transform_and_log_det(x)),
        jax.vmap(lambda y, raw: given(raw).inverse_and_log_det(y)),
        arrays,
    )


class Layers(torch.nn.Module):
    """A stack of a library's layers, whose parameters are named as the arguments are that each layer is made with."""

    def __init__(self, names: tuple[str, ...], layers: Iterable[torch.nn.Module]) -> None:
        super().__init__()
        self.names = names
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All layers in turn."""
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def as_function(self) -> Pair:
        """The stack as a function of x and the parameters, which have one row per layer."""
        for layer in self.layers:
            for name in self.names:
                delattr(layer, name)

        def forward(x, *parameters):
            for layer, *own in zip(self.layers, *(p.split(1) for p in parameters)):
                vars(layer).update(zip(self.names, own))
            return self(x)

        return Pair(forward, None)


def normflows_planar(u: Tensor, w: Tensor, b: Tensor) -> Layers:
    """normflows' Planar, K of them."""
    flows = load("normflows.flows")
    shape, rows = (u.shape[1],), zip(*(p.clone().split(1) for p in (u, w, b)))
    return Layers(("u", "w", "b"), (flows.Planar(shape, "tanh", *own) for own in rows))


def normflows_radial(center: Tensor, alpha: Tensor, beta: Tensor) -> Layers:
    """normflows' Radial, K of them."""
    flows = load("normflows.flows")
    layers = []
    for own in zip(*(p.clone().split(1) for p in (center, alpha, beta))):
        layers.append(flows.Radial((center.shape[1],), own[0]).to(center.device))
        layers[-1].alpha, layers[-1].beta = map(torch.nn.Parameter, own[1:])
    return Layers(("z_0", "alpha", "beta"), layers)


def flowjax_planar_step(inputs: tuple[Tensor, ...], mode: str) -> Callable[[], object]:
    """A training step of flowjax's planar layers, scanned as its planar_flow does, under jit with optax's Adam.

    Its constraint of u is another function, so the loss is another too; the work is the same.
    """
    x, u, w, b = inputs
    bijections, equinox, jax = _flowjax(x)
    depth, features = u.shape
    keys = jax.random.split(jax.random.key(0), depth)
    layers = equinox.filter_vmap(lambda key: bijections.Planar(key, dim=features))(keys)
    given = jax.numpy.asarray(torch.cat((w, u, b[:, None]), 1).numpy())
    stack = bijections.Scan(equinox.tree_at(lambda planar: planar.params, layers, given))
    return _flowjax_step(stack, x)


def flowjax_spline_step(x: Tensor, depth: int, hidden: int, bins: int, bound: float, mode: str) -> Callable[[], object]:
    """A training step of flowjax's coupling layers of splines under jit with optax's Adam.

    The layers are scanned, as its coupling_flow does, with a reversal between them; its splines have another map to
    positive numbers, so the loss is another, for the same work.
    """
    bijections, equinox, jax = _flowjax(x)
    features = x.shape[1]

    def make(key):
        coupling = bijections.Coupling(
            key,
            transformer=bijections.RationalQuadraticSpline(knots=bins, interval=bound),
            untransformed_dim=features // 2,
            dim=features,
            nn_width=hidden,
            nn_depth=2,
        )
        return bijections.Chain([coupling, bijections.Flip((features,))])

    layers = equinox.filter_vmap(make)(jax.random.split(jax.random.key(0), depth))
    return _flowjax_step(bijections.Scan(layers), x)


def _flowjax(x: Tensor) -> tuple[ModuleType, ModuleType, ModuleType]:
    """flowjax's bijections, equinox and jax."""
    if x.device.type != "cpu":
        raise ImportError("flowjax is measured on the CPU only")
    logging.getLogger("jax").setLevel(logging.ERROR)
    return load("flowjax.bijections"), load("equinox"), load("jax")


def _flowjax_step(stack: Any, x: Tensor) -> Callable[[], object]:
    equinox, jax, optax = map(load, ("equinox", "jax", "optax"))
    data, optimizer = jax.numpy.asarray(x.numpy()), optax.adam(LEARNING_RATE)

    def loss(stack):
        z, log_det = jax.vmap(stack.transform_and_log_det)(data)
        return 0.5 * (z**2).sum(1).mean() - log_det.mean()

    @equinox.filter_jit
    def update(stack, state):
        value, grads = equinox.filter_value_and_grad(loss)(stack)
        updates, state = optimizer.update(grads, state)
        return equinox.apply_updates(stack, updates), state, value

    held = [stack, optimizer.init(equinox.filter(stack, equinox.is_inexact_array))]

    def step():
        *held[:], value = update(*held)
        return jax.block_until_ready(value)

    return step
