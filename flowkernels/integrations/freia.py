"""FrEIA (https://github.com/vislearn/FrEIA). `rev=False` maps data to latent.

The release on PyPI and the head on GitHub have one version number and differ: a block is tried out before it is taken.
"""

from __future__ import annotations

import functools
import math
import types
from typing import Any

import torch
from FrEIA import modules
from FrEIA.modules import coupling_layers
from torch import Tensor, nn

from ..functional import affine_coupling, rational_quadratic_spline
from ..ops.affine_coupling import AffineForm
from ..ops.rational_quadratic_spline import SplineForm
from .core import Given, family, leave_alone, network, register, takes

family(modules.InvertibleModule)
for _kind, _why in (
    (modules.NICECouplingBlock, "one addition per half already"),
    (modules.PermuteRandom, "one copy already"),
    (modules.Fixed1x1Conv, "one convolution already"),
    (modules.Flatten, "a view already"),
    (modules.Reshape, "a view already"),
    (modules.ActNorm, "one multiplication and one addition already"),
):
    leave_alone(_kind, _why)

_NOTE = "any clamp activation; after one that is not the library's own, the rest if large, or on a GPU"


class _Sines(nn.Module):
    """A network for trying a block out: fixed, so that no generator is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, u: Tensor) -> Tensor:
        return 2 * torch.sin(u.sum(1, keepdim=True) + torch.arange(self.outputs, device=u.device))


@functools.lru_cache
def _tried(fast: type, library: Any) -> str | None:
    """Why a class is left alone: a small block of it does something else once it is accelerated."""
    block = library([(4,)], [(1,)], subnet_constructor=_Sines).double()
    rows = max(8, getattr(fast, "least", 0)) // 2
    x, condition = (torch.linspace(-2, 2, rows * n, dtype=torch.float64, device="cpu").view(rows, n) for n in (4, 1))
    for rev in (False, True):
        block.__class__ = library
        (y,), log_det = block([x], [condition], rev=rev)
        block.__class__ = fast
        (found,), found_log_det = block([x], [condition], rev=rev)
        if not (torch.allclose(found, y) and torch.allclose(torch.as_tensor(found_log_det), torch.as_tensor(log_det))):
            return "its coupling computes something else here"
    return None


def _refuse(fast: Any, module: Any) -> str | None:
    return _tried(fast, type(module))


def _key(activation: Any) -> Any:
    """What tells a clamp activation: torch's by itself; the library's own are made for every block from one code."""
    return activation if isinstance(activation, types.BuiltinFunctionType) else getattr(activation, "__code__", None)


def _known_activations() -> dict[Any, str]:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, device="cpu")
    formulas = {"ATAN": 0.636 * torch.atan(x), "TANH": torch.tanh(x), "SIGMOID": 2 * torch.sigmoid(x) - 1}
    made = {name: coupling_layers._BaseCouplingBlock([(2,)], clamp_activation=name).f_clamp for name in formulas}
    return {_key(function): name for name, function in made.items() if torch.allclose(function(x), formulas[name])}


_ACTIVATIONS = _known_activations()


@functools.lru_cache
def _clamped(clamp: float, activation: str) -> AffineForm:
    return AffineForm.freia(clamp, activation)


def _form(block: Any) -> AffineForm | None:
    """The form of a block's coupling; None where its clamp activation has to be called."""
    activation = _ACTIVATIONS.get(_key(block.f_clamp))
    return _clamped(block.clamp, activation) if activation and _positive(block.clamp) else None


def _positive(number: Any) -> bool:
    return isinstance(number, (int, float)) and 1e-30 <= number < math.inf


# How many numbers make a call on a CPU worth while. Below, the library's few small operations take less time than one
# that gets scale and shift in two tensors; after an activation in torch, there is little left to save.
_SOME, _MANY = 2**13, 2**18


def _pays(x: Any, least: int) -> bool:
    """Whether x is large enough; everywhere but on a CPU, an operation saved is a launch saved."""
    return isinstance(x, Tensor) and (x.device.type != "cpu" or x.numel() >= least)


def _fits(x: Any, raw: Any, channels: int) -> bool:
    """Whether the op takes what a network returned for x; the library also broadcasts and promotes."""
    return takes(x, raw) and raw.shape == (x.shape[0], channels, *x.shape[2:])


def _couple(block: Any, x: Any, raw: Any, rev: bool) -> tuple[Tensor, Tensor] | None:
    """Value and log-determinant of the coupling of x by what networks returned: scale and shift, or both in one tensor.

    None where the op does not take it.
    """
    if not takes(x) or x.dim() != block.ndims + 1:
        return None
    channels = x.shape[1]
    if not (all(_fits(x, r, channels) for r in raw) if isinstance(raw, tuple) else _fits(x, raw, 2 * channels)):
        return None
    form = _form(block)
    if form is not None:
        return affine_coupling(x, raw, form=form, inverse=bool(rev))
    return _couple_given(block, x, raw, rev, None) if _pays(x, _MANY) else None


def _couple_given(block: Any, x: Tensor, raw: Any, rev: bool, centre: int | None) -> tuple[Tensor, Tensor] | None:
    """`_couple` where the block's own activation computes the logarithm of the scale; centre: then centred there."""
    scale, shift = raw if isinstance(raw, tuple) else raw.tensor_split(2, 1)
    log_scale = block.clamp * block.f_clamp(scale)
    if not _fits(x, log_scale, x.shape[1]):
        return None
    if centre is not None:
        log_scale = log_scale - log_scale.mean(centre, keepdim=True)
    return affine_coupling(x, (log_scale, shift), inverse=bool(rev))


@register(modules.GLOWCouplingBlock, runs="fk.affine_coupling", note=_NOTE)
class GLOWCouplingBlock(modules.GLOWCouplingBlock):
    refuse = classmethod(_refuse)

    def _coupling1(self, x1, u2, rev=False):
        raw = network(self.subnet2, u2)
        original = modules.GLOWCouplingBlock._coupling1
        return _couple(self, x1, raw, rev) or original(Given(self, subnet2=lambda _: raw), x1, u2, rev)

    def _coupling2(self, x2, u1, rev=False):
        raw = network(self.subnet1, u1)
        original = modules.GLOWCouplingBlock._coupling2
        return _couple(self, x2, raw, rev) or original(Given(self, subnet1=lambda _: raw), x2, u1, rev)


@register(
    modules.RNVPCouplingBlock,
    runs="fk.affine_coupling",
    note=f"{_NOTE}; the coupling of small calls on a CPU as before",
)
class RNVPCouplingBlock(modules.RNVPCouplingBlock):
    refuse = classmethod(_refuse)
    least = _SOME

    def _coupling1(self, x1, u2, rev=False):
        s, t = network(self.subnet_s2, u2), network(self.subnet_t2, u2)
        given = Given(self, subnet_s2=lambda _: s, subnet_t2=lambda _: t)
        found = _couple(self, x1, (s, t), rev) if _pays(x1, self.least) else None
        return found or modules.RNVPCouplingBlock._coupling1(given, x1, u2, rev)

    def _coupling2(self, x2, u1, rev=False):
        s, t = network(self.subnet_s1, u1), network(self.subnet_t1, u1)
        given = Given(self, subnet_s1=lambda _: s, subnet_t1=lambda _: t)
        found = _couple(self, x2, (s, t), rev) if _pays(x2, self.least) else None
        return found or modules.RNVPCouplingBlock._coupling2(given, x2, u1, rev)


@register(
    modules.GINCouplingBlock,
    runs="fk.affine_coupling",
    note="its clamp and centring as before; the rest if large, or on a GPU",
)
class GINCouplingBlock(modules.GINCouplingBlock):
    refuse = classmethod(_refuse)
    least = _MANY

    def _coupling1(self, x1, u2, rev=False):
        raw = network(self.subnet2, u2)
        original = modules.GINCouplingBlock._coupling1
        found = _couple_gin(self, x1, raw, rev) if _pays(x1, self.least) else None
        return found or original(Given(self, subnet2=lambda _: raw), x1, u2, rev)

    def _coupling2(self, x2, u1, rev=False):
        raw = network(self.subnet1, u1)
        original = modules.GINCouplingBlock._coupling2
        found = _couple_gin(self, x2, raw, rev) if _pays(x2, self.least) else None
        return found or original(Given(self, subnet1=lambda _: raw), x2, u1, rev)


def _couple_gin(block: Any, x: Any, raw: Any, rev: bool) -> tuple[Tensor, float] | None:
    """As `_couple`; the log-determinant is the library's 0."""
    found = _couple_given(block, x, raw, rev, 1) if takes(x) and _fits(x, raw, 2 * x.shape[1]) else None
    return found and (found[0], 0.0)


@register(modules.AffineCouplingOneSided, runs="fk.affine_coupling", note=_NOTE)
class AffineCouplingOneSided(modules.AffineCouplingOneSided):
    refuse = classmethod(_refuse)

    def forward(self, x, c=(), rev=False, jac=True):
        x1, x2 = torch.split(x[0], [self.split_len1, self.split_len2], dim=1)
        raw = network(self.subnet, torch.cat([x1, *c], 1) if self.conditional else x1)
        found = _couple(self, x2, raw, rev)
        if found is None:
            return modules.AffineCouplingOneSided.forward(Given(self, subnet=lambda _: raw), x, c, rev, jac)
        return (torch.cat((x1, found[0]), 1),), found[1]


@register(modules.ConditionalAffineTransform, runs="fk.affine_coupling", note=_NOTE)
class ConditionalAffineTransform(modules.ConditionalAffineTransform):
    refuse = classmethod(_refuse)

    def forward(self, x, c=(), rev=False, jac=True):
        raw = network(self.subnet, torch.cat(c, 1) if len(c) > 1 else c[0])
        found = _couple(self, x[0], raw, rev)
        if found is None:
            return modules.ConditionalAffineTransform.forward(Given(self, subnet=lambda _: raw), x, c, rev, jac)
        return (found[0],), found[1]


@functools.lru_cache
def _all_in_one(clamp: float, scale: str) -> AffineForm:
    return AffineForm(scale, bound=clamp, prescale=0.1)


def _all_in_one_scale() -> str | None:
    """The scale map of the library's AllInOneBlock, which is not the same in all that have this version number."""
    affine = getattr(modules.AllInOneBlock, "_affine", None)
    x, a = (torch.linspace(-9, 9, 3 * n, dtype=torch.float64, device="cpu").view(3, n) for n in (2, 4))
    for scale in ("tanh", "tanh_scaled"):
        form = _all_in_one(1.5, scale)
        stub = types.SimpleNamespace(clamp=1.5, GIN=False, sum_dims=(1,))
        if affine and all(
            torch.allclose(found, expected)
            for rev in (False, True)
            for found, expected in zip(affine_coupling(x, a, form=form, inverse=rev), affine(stub, x, a.clone(), rev))
        ):
            return scale
    return None


_ALL_IN_ONE = _all_in_one_scale()


@register(
    modules.AllInOneBlock,
    runs="fk.affine_coupling",
    note="its coupling, unless gin_block; small calls on a CPU, and the rest, as before",
)
class AllInOneBlock(modules.AllInOneBlock):
    least = _SOME

    @staticmethod
    def refuse(module: Any) -> str | None:
        if module.GIN:
            return "gin_block: nothing is gained"
        return None if _ALL_IN_ONE else "its coupling computes something else here"

    def forward(self, x, c=(), rev=False, jac=True):
        if self.householder:  # then it also writes into the block
            return super().forward(x, c, rev, jac)
        given = Given(self, subnet=functools.partial(network, self.subnet))
        return modules.AllInOneBlock.forward(given, x, c, rev, jac)

    def _affine(self, x, a, rev=False):
        known = _ALL_IN_ONE is not None and not self.GIN and _positive(self.clamp)
        if known and _pays(x, self.least) and x.dim() == 1 + len(self.sum_dims) and _fits(x, a, 2 * x.shape[1]):
            return affine_coupling(x, a, form=_all_in_one(self.clamp, _ALL_IN_ONE), inverse=bool(rev))
        return super()._affine(x, a, rev)


@functools.lru_cache
def _spline(bins: int, min_bin_sizes: tuple[float, float], domain: tuple[float, float, float, float]) -> SplineForm:
    return SplineForm.freia(bins, min_bin_sizes=min_bin_sizes, default_domain=domain)


def _transform(block: Any, x: Any, raw: Any, rev: bool) -> tuple[Tensor, Tensor] | None:
    """As `_couple`, for splines."""
    base = block.spline_base
    if not takes(x) or base.domain_clamping is not None or bool(base.identity_tails):
        return None
    form = _spline(int(base.bins), tuple(base.min_bin_sizes.tolist()), tuple(base.default_domain.tolist()))
    if not _fits(x, raw, form.parameters * x.shape[1]):
        return None
    return rational_quadratic_spline(x, raw, form=form, inverse=bool(rev))


if hasattr(modules, "RationalQuadraticSpline"):  # not in the release on PyPI

    @register(modules.RationalQuadraticSpline, runs="fk.rational_quadratic_spline", note="in the head on GitHub")
    class RationalQuadraticSpline(modules.RationalQuadraticSpline):
        @classmethod
        def refuse(cls, module: Any) -> str | None:
            if module.spline_base.domain_clamping is not None or bool(module.spline_base.identity_tails):
                return "identity_tails or domain_clamping"
            return _refuse(cls, module)

        def _coupling1(self, x1, u2, rev=False):
            raw = network(self.subnet1, u2)
            original = modules.RationalQuadraticSpline._coupling1
            return _transform(self, x1, raw, rev) or original(Given(self, subnet1=lambda _: raw), x1, u2, rev)

        def _coupling2(self, x2, u1, rev=False):
            raw = network(self.subnet2, u1)
            original = modules.RationalQuadraticSpline._coupling2
            return _transform(self, x2, raw, rev) or original(Given(self, subnet2=lambda _: raw), x2, u1, rev)
