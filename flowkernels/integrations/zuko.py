"""zuko (https://github.com/probabilists/zuko). Its modules build transforms, which map data to latent."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform
from zuko import flows, lazy, transforms
from zuko.flows.gaussianization import ElementWiseTransform as _ElementWiseTransform
from zuko.utils import broadcast, unpack

from ..functional import affine_coupling, rational_quadratic_spline
from ..ops.affine_coupling import AffineForm
from ..ops.rational_quadratic_spline import SplineForm
from .core import family, register, takes

family(lazy.LazyTransform)

_NOTE = "MonotonicAffineTransform and MonotonicRQSTransform, with any bound and slope"


class Elementwise(transforms.DependentTransform):
    """A univariate transform of each feature, in one pass.

    Args:
        phi: what the module's network returned, shape (..., features parameters), those of a feature adjacent.
        module: says what they are parameters of.
        form: what that is for the op.
    """

    inv = Transform.inv

    def __init__(self, phi: Tensor, module: Any, form: AffineForm | SplineForm) -> None:
        Transform.__init__(self)
        self.reinterpreted = 1
        self.phi, self.form = phi, form
        self.univariate, self.shapes, self.total = module.univariate, module.shapes, module.total

    @functools.cached_property
    def base(self) -> Transform:
        """The library's univariate transform, made only where it is asked for."""
        return self.univariate(*unpack(self.phi.unflatten(-1, (-1, self.total)), self.shapes))

    def _run(self, x: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
        """The value and the log-determinant; None where the op does not take x."""
        if not takes(x, self.phi) or x.shape[-1] * self.total != self.phi.shape[-1]:
            return None
        batch, phi = x.shape[:-1], self.phi
        if phi.shape[:-1] != batch:
            if not _expands(phi.shape[:-1], batch):
                return None
            phi = phi.expand(*batch, -1)
        if len(batch) == 1:
            return _apply(x, phi, self.form, inverse)
        y, ladj = _apply(x.flatten(0, -2), phi.flatten(0, -2), self.form, inverse)
        return y.view(x.shape), ladj.view(batch)

    def _call(self, x):
        found = self._run(x, False)
        return super()._call(x) if found is None else found[0]

    def _inverse(self, y):
        found = self._run(y, True)
        return super()._inverse(y) if found is None else found[0]

    def log_abs_det_jacobian(self, x, y):
        found = self._run(x, False)
        return super().log_abs_det_jacobian(x, y) if found is None else found[1]

    def call_and_ladj(self, x):
        return self._run(x, False) or super().call_and_ladj(x)


def _expands(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to)))


def _apply(x: Tensor, phi: Tensor, form: AffineForm | SplineForm, inverse: bool) -> tuple[Tensor, Tensor]:
    """The op that a form is of, for x of shape (B, features)."""
    if isinstance(form, AffineForm):
        return affine_coupling(x, phi, form=form, inverse=inverse)
    return rational_quadratic_spline(x, phi, form=form, inverse=inverse)


def _form(module: Any) -> AffineForm | SplineForm | None:
    """What the module's univariate transform is for our ops."""
    univariate: Any = module.univariate
    constants: dict[str, Any] = {}
    if isinstance(univariate, functools.partial) and not univariate.args:
        univariate, constants = univariate.func, univariate.keywords
    if not all(isinstance(value, numbers.Real) for value in constants.values()):
        return None
    shapes = tuple(map(tuple, module.shapes))
    if univariate is transforms.MonotonicAffineTransform and shapes == ((), ()) and constants.keys() <= {"slope"}:
        return _affine(**constants)
    if univariate is transforms.MonotonicRQSTransform and constants.keys() <= {"bound", "slope"}:
        bins = shapes[0][0] if len(shapes) == 3 and len(shapes[0]) == 1 else 0
        return _spline(bins, **constants) if shapes == ((bins,), (bins,), (bins - 1,)) else None
    return None


@functools.lru_cache
def _affine(slope: float = 1e-3) -> AffineForm | None:
    if not 0 < slope < math.inf or slope == 1:
        return None
    return AffineForm("softclip", bound=abs(math.log(slope)), layout="interleaved_shift_scale")


@functools.lru_cache
def _spline(bins: int, bound: float = 5.0, slope: float = 1e-3) -> SplineForm | None:
    try:
        return SplineForm.zuko(bins, bound, slope=slope)
    except ValueError:  # constants that the op does not take
        return None


def _refuse(module: Any) -> str | None:
    """Why a module is left alone: what it builds is tried on a few numbers, in and out of a spline's box."""
    form = _form(module)
    if form is None:
        kind = getattr(module.univariate, "func", module.univariate)
        return f"unknown univariate transform {getattr(kind, '__name__', type(kind).__name__)!r}, or options of it"
    phi = (1.7 * torch.arange(9.0 * module.total, dtype=torch.float64, device="cpu")).sin().view(9, module.total)
    x = torch.linspace(-1.2, 1.2, 9, dtype=torch.float64, device="cpu") * (getattr(form, "bound", None) or 1.0)
    y, ladj = module.univariate(*unpack(phi, module.shapes)).call_and_ladj(x)
    found, log_det = _apply(x[:, None], phi, form, False)
    if torch.allclose(found[:, 0], y) and torch.allclose(log_det, ladj):
        return None
    return "its univariate transform computes something else here"


def _meta(module: Any, c: Any, x: Any, original: Any) -> Transform:
    """The transform whose parameters the network makes from x and the context."""
    form = _form(module)
    if form is None:
        return original(module, c, x)
    if c is not None:
        x = torch.cat(broadcast(x, c, ignore=1), dim=-1)
    return Elementwise(module.hyper(x), module, form)


@register(flows.GeneralCouplingTransform, runs="fk.affine_coupling or fk.rational_quadratic_spline", note=_NOTE)
class GeneralCouplingTransform(flows.GeneralCouplingTransform):
    refuse = staticmethod(_refuse)

    def meta(self, c, x):
        return _meta(self, c, x, flows.GeneralCouplingTransform.meta)


@register(
    flows.MaskedAutoregressiveTransform,
    runs="fk.affine_coupling or fk.rational_quadratic_spline",
    note=f"{_NOTE}; the network runs as before, once per pass in the inverse",
)
class MaskedAutoregressiveTransform(flows.MaskedAutoregressiveTransform):
    refuse = staticmethod(_refuse)

    def meta(self, c, x):
        return _meta(self, c, x, flows.MaskedAutoregressiveTransform.meta)


@register(_ElementWiseTransform, runs="fk.affine_coupling or fk.rational_quadratic_spline", note=_NOTE)
class ElementWiseTransform(_ElementWiseTransform):
    refuse = staticmethod(_refuse)

    def forward(self, c=None):
        form = _form(self)
        if form is None:
            return super().forward(c)
        phi = torch.cat([p.reshape(len(p), -1) for p in self.phi], 1).flatten() if c is None else self.hyper(c)
        return Elementwise(phi, self, form)
