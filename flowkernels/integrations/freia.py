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
from .core import Given, family, leave_alone, register, takes

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

_NOTE = "any clamp activation: one that is not the library's own computes the logarithm of the scale as before"


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
    block = library([(4,)], [(1,)], subnet_constructor=_Sines)
    x, condition = (torch.linspace(-2, 2, 3 * n, dtype=torch.float64, device="cpu").view(3, n) for n in (4, 1))
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
    """What tells a clamp activation: the library's own are made anew for every block, from one piece of code."""
    return getattr(activation, "__code__", activation)


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


def _fits(x: Any, raw: Any, channels: int) -> bool:
    """Whether the op takes what a network returned for x; the library also broadcasts and promotes."""
    return takes(x, raw) and raw.shape == (x.shape[0], channels, *x.shape[2:])


def _couple(block: Any, x: Any, u: Any, rev: bool, *nets: str) -> tuple[Any, Given]:
    """Value and log-determinant of the coupling of x whose scale and shift the networks of these names make of u.

    None where the op does not take x; and the block with what was computed already, for the library's own method.
    """
    raw = [getattr(block, net)(u) for net in nets]
    given = Given(block, **{net: lambda _, r=r: r for net, r in zip(nets, raw)})
    if not takes(x) or x.dim() != block.ndims + 1:
        return None, given
    channels = x.shape[1]
    if not all(_fits(x, r, channels * 2 // len(raw)) for r in raw):
        return None, given
    scale, shift = raw if len(raw) == 2 else (raw[0][:, :channels], raw[0][:, channels:])
    centred = isinstance(block, modules.GINCouplingBlock)
    form = None if centred else _form(block)
    if form is not None:
        return affine_coupling(x, raw[0] if len(raw) == 1 else (scale, shift), form=form, inverse=bool(rev)), given
    clamped = block.f_clamp(scale)
    log_scale = block.clamp * clamped
    if not _fits(x, log_scale, channels):
        return None, Given(given, f_clamp=lambda _: clamped)
    if centred:
        log_scale = log_scale - log_scale.mean(1, keepdim=True)
    y, log_det = affine_coupling(x, (log_scale, shift), inverse=bool(rev))
    return (y, 0.0 if centred else log_det), given


@register(modules.GLOWCouplingBlock, runs="fk.affine_coupling", note=_NOTE)
class GLOWCouplingBlock(modules.GLOWCouplingBlock):
    refuse = classmethod(_refuse)

    def _coupling1(self, x1, u2, rev=False):
        found, given = _couple(self, x1, u2, rev, "subnet2")
        return found or modules.GLOWCouplingBlock._coupling1(given, x1, u2, rev)

    def _coupling2(self, x2, u1, rev=False):
        found, given = _couple(self, x2, u1, rev, "subnet1")
        return found or modules.GLOWCouplingBlock._coupling2(given, x2, u1, rev)


@register(modules.GINCouplingBlock, runs="fk.affine_coupling", note="clamp and centring as before; then in one pass")
class GINCouplingBlock(modules.GINCouplingBlock):
    refuse = classmethod(_refuse)

    def _coupling1(self, x1, u2, rev=False):
        found, given = _couple(self, x1, u2, rev, "subnet2")
        return found or modules.GINCouplingBlock._coupling1(given, x1, u2, rev)

    def _coupling2(self, x2, u1, rev=False):
        found, given = _couple(self, x2, u1, rev, "subnet1")
        return found or modules.GINCouplingBlock._coupling2(given, x2, u1, rev)


@register(modules.RNVPCouplingBlock, runs="fk.affine_coupling", note=_NOTE)
class RNVPCouplingBlock(modules.RNVPCouplingBlock):
    refuse = classmethod(_refuse)

    def _coupling1(self, x1, u2, rev=False):
        found, given = _couple(self, x1, u2, rev, "subnet_s2", "subnet_t2")
        return found or modules.RNVPCouplingBlock._coupling1(given, x1, u2, rev)

    def _coupling2(self, x2, u1, rev=False):
        found, given = _couple(self, x2, u1, rev, "subnet_s1", "subnet_t1")
        return found or modules.RNVPCouplingBlock._coupling2(given, x2, u1, rev)


@register(modules.AffineCouplingOneSided, runs="fk.affine_coupling", note=_NOTE)
class AffineCouplingOneSided(modules.AffineCouplingOneSided):
    refuse = classmethod(_refuse)

    def forward(self, x, c=(), rev=False, jac=True):
        x1, x2 = torch.split(x[0], [self.split_len1, self.split_len2], dim=1)
        found, given = _couple(self, x2, torch.cat([x1, *c], 1) if self.conditional else x1, rev, "subnet")
        if found is None:
            return modules.AffineCouplingOneSided.forward(given, x, c, rev, jac)
        return (torch.cat((x1, found[0]), 1),), found[1]


@register(modules.ConditionalAffineTransform, runs="fk.affine_coupling", note=_NOTE)
class ConditionalAffineTransform(modules.ConditionalAffineTransform):
    refuse = classmethod(_refuse)

    def forward(self, x, c=(), rev=False, jac=True):
        found, given = _couple(self, x[0], torch.cat(c, 1) if len(c) > 1 else c[0], rev, "subnet")
        if found is None:
            return modules.ConditionalAffineTransform.forward(given, x, c, rev, jac)
        return (found[0],), found[1]


@functools.lru_cache
def _all_in_one(clamp: float, scale: str) -> AffineForm:
    return AffineForm(scale, bound=clamp, prescale=0.1)


@functools.cache
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


@register(modules.AllInOneBlock, runs="fk.affine_coupling", note="its coupling, unless gin_block; the rest as before")
class AllInOneBlock(modules.AllInOneBlock):
    @staticmethod
    def refuse(module: Any) -> str | None:
        if module.GIN:
            return "gin_block: nothing is gained"
        return None if _all_in_one_scale() else "its coupling computes something else here"

    def _affine(self, x, a, rev=False):
        scale = _all_in_one_scale()
        if scale is None or self.GIN or x.dim() != 1 + len(self.sum_dims) or not _positive(self.clamp):
            return super()._affine(x, a, rev)
        if not _fits(x, a, 2 * x.shape[1]):
            return super()._affine(x, a, rev)
        return affine_coupling(x, a, form=_all_in_one(self.clamp, scale), inverse=bool(rev))


@functools.lru_cache
def _spline(bins: int, min_bin_sizes: tuple[float, float], domain: tuple[float, float, float, float]) -> SplineForm:
    return SplineForm.freia(bins, min_bin_sizes=min_bin_sizes, default_domain=domain)


def _transform(block: Any, x: Any, u: Any, rev: bool, net: str) -> tuple[Any, Given]:
    """As `_couple`, for splines."""
    raw, base = getattr(block, net)(u), block.spline_base
    given = Given(block, **{net: lambda _: raw})
    if base.domain_clamping is not None or bool(base.identity_tails) or not takes(x):
        return None, given
    form = _spline(int(base.bins), tuple(base.min_bin_sizes.tolist()), tuple(base.default_domain.tolist()))
    if not _fits(x, raw, form.parameters * x.shape[1]):
        return None, given
    return rational_quadratic_spline(x, raw, form=form, inverse=bool(rev)), given


if hasattr(modules, "RationalQuadraticSpline"):  # not in the release on PyPI

    @register(modules.RationalQuadraticSpline, runs="fk.rational_quadratic_spline", note="in the head on GitHub")
    class RationalQuadraticSpline(modules.RationalQuadraticSpline):
        @classmethod
        def refuse(cls, module: Any) -> str | None:
            if module.spline_base.domain_clamping is not None or bool(module.spline_base.identity_tails):
                return "identity_tails or domain_clamping"
            return _refuse(cls, module)

        def _coupling1(self, x1, u2, rev=False):
            found, given = _transform(self, x1, u2, rev, "subnet1")
            return found or modules.RationalQuadraticSpline._coupling1(given, x1, u2, rev)

        def _coupling2(self, x2, u1, rev=False):
            found, given = _transform(self, x2, u1, rev, "subnet2")
            return found or modules.RationalQuadraticSpline._coupling2(given, x2, u1, rev)
