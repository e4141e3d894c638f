"""nflows (https://github.com/bayesiains/nflows). Its `forward` maps data to latent."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from nflows import transforms
from nflows.nn.nets import resnet
from nflows.transforms import autoregressive, coupling, nonlinearities
from torch import Tensor

from ..functional import actnorm, affine_coupling, squeeze, unsqueeze
from ..ops.affine_coupling import AffineForm
from ..ops.squeeze import FACTOR, moves_lines
from . import nsf
from .core import family, leave_alone, register, takes

family(transforms.Transform)
for _permutation in (transforms.Permutation, transforms.RandomPermutation, transforms.ReversePermutation):
    leave_alone(_permutation, "one copy already")

_KNOWN = tuple(AffineForm.nflows(name) for name in ("default", "general"))
_ADDITIVE = AffineForm.nflows("additive")
_GIVEN = AffineForm("given")


def _agrees(scale_and_shift: Callable[[Tensor], tuple[Tensor, Tensor]], form: AffineForm) -> bool:
    """Whether raw numbers become this form's scale and shift."""
    raw = torch.stack((torch.linspace(-1, 1, 61), torch.linspace(-30, 30, 61)), 1).double()
    zero, one = torch.zeros(61, 1).double(), torch.ones(61, 1).double()
    scale, shift = scale_and_shift(raw)
    (at_zero, _), (at_one, _) = (affine_coupling(x, raw, form=form) for x in (zero, one))
    return torch.allclose(shift, at_zero, atol=1e-12) and torch.allclose(scale, at_one - at_zero, atol=1e-9)


@functools.lru_cache(maxsize=64)
def _recognised(activation: Callable | None) -> AffineForm:
    """The form of a scale activation, found by what it does: releases of one version number differ."""

    def scale_and_shift(raw: Tensor) -> tuple[Tensor, Tensor]:
        module = types.SimpleNamespace(num_transform_features=1, scale_activation=activation)
        return coupling.AffineCouplingTransform._scale_and_shift(module, raw)

    with torch.no_grad():
        return next((form for form in _KNOWN if _agrees(scale_and_shift, form)), _GIVEN)


def _form(module: Any) -> AffineForm:
    activation = getattr(module, "scale_activation", None)
    if activation is None or (isinstance(activation, types.FunctionType) and activation.__closure__ is None):
        return _recognised(activation)
    return _GIVEN


def _affine(module: Any, x: Tensor, raw: Any, passive: int | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The op of an affine coupling. A scale activation that is not known computes the scale, as the library has it."""
    active = x.shape[1] - abs(passive or 0)
    if not takes(x, raw) or raw.shape != (x.shape[0], 2 * active, *x.shape[2:]):
        return None
    form = _form(module)
    if form is not _GIVEN:
        return affine_coupling(x, raw, form=form, passive=passive, inverse=inverse)
    scale, shift = module._scale_and_shift(raw)
    if not takes(x, scale, shift) or not scale.shape == shift.shape == (x.shape[0], active, *x.shape[2:]):
        return None
    return affine_coupling(x, (scale, shift), form=form, passive=passive, inverse=inverse)


def _additive(module: Any, x: Tensor, raw: Any, passive: int | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    if not takes(x, raw) or raw.shape != (x.shape[0], x.shape[1] - abs(passive or 0), *x.shape[2:]):
        return None
    return affine_coupling(x, raw, form=_ADDITIVE, passive=passive, inverse=inverse)


@register(
    resnet.ResidualNet,
    runs="a perceptron in one pass",
    note="on the CPU, in float32, without context, dropout and batch normalisation; relu and leaky_relu",
)
class ResidualNet(resnet.ResidualNet):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_residual(module, resnet)

    def forward(self, inputs, context=None):
        return nsf.residual(self, inputs, context, resnet)


@register(
    transforms.AffineCouplingTransform,
    runs="fk.affine_coupling",
    note="any mask; a scale activation that is not known computes the scale itself",
)
class AffineCouplingTransform(transforms.AffineCouplingTransform):
    def forward(self, inputs, context=None):
        return nsf.couple(self, inputs, context, transforms.AffineCouplingTransform.forward, False, _affine)

    def inverse(self, inputs, context=None):
        return nsf.couple(self, inputs, context, transforms.AffineCouplingTransform.inverse, True, _affine)


@register(transforms.AdditiveCouplingTransform, runs="fk.affine_coupling", note="any mask")
class AdditiveCouplingTransform(transforms.AdditiveCouplingTransform):
    def forward(self, inputs, context=None):
        return nsf.couple(self, inputs, context, transforms.AdditiveCouplingTransform.forward, False, _additive)

    def inverse(self, inputs, context=None):
        return nsf.couple(self, inputs, context, transforms.AdditiveCouplingTransform.inverse, True, _additive)


@register(
    transforms.PiecewiseRationalQuadraticCouplingTransform,
    runs="fk.rational_quadratic_spline",
    note="any mask; linear tails, or none",
)
class PiecewiseRationalQuadraticCouplingTransform(transforms.PiecewiseRationalQuadraticCouplingTransform):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_spline(module)

    def forward(self, inputs, context=None):
        original = transforms.PiecewiseRationalQuadraticCouplingTransform.forward
        return nsf.couple(self, inputs, context, original, False, nsf.spline)

    def inverse(self, inputs, context=None):
        original = transforms.PiecewiseRationalQuadraticCouplingTransform.inverse
        return nsf.couple(self, inputs, context, original, True, nsf.spline)


@register(
    nonlinearities.PiecewiseRationalQuadraticCDF, runs="fk.rational_quadratic_spline", note="linear tails, or none"
)
class PiecewiseRationalQuadraticCDF(nonlinearities.PiecewiseRationalQuadraticCDF):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_cdf(module)

    def forward(self, inputs, context=None):
        return nsf.cdf(self, inputs, False) or super().forward(inputs, context)

    def inverse(self, inputs, context=None):
        return nsf.cdf(self, inputs, True) or super().inverse(inputs, context)


@functools.lru_cache(maxsize=16)
def _softplus(eps: float) -> AffineForm:
    return AffineForm("softplus", eps=eps, layout="trailing_scale_shift")


def _autoregressive(module: Any, inputs: Any, raw: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    if not takes(inputs, raw) or inputs.dim() != 2 or raw.shape != (inputs.shape[0], 2 * inputs.shape[1]):
        return None
    pairs = raw.view(*inputs.shape, 2)
    return affine_coupling(inputs, pairs, form=_softplus(module._epsilon), inverse=inverse)


@register(
    transforms.MaskedAffineAutoregressiveTransform,
    runs="fk.affine_coupling",
    note="its elementwise part; the network runs as before, once per feature in `inverse`",
)
class MaskedAffineAutoregressiveTransform(transforms.MaskedAffineAutoregressiveTransform):
    @staticmethod
    def refuse(module: Any) -> str | None:
        x, raw = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.3, 0.7], [-2.0, 0.1]]).double()
        stand_in = types.SimpleNamespace(features=1, _epsilon=module._epsilon, _output_dim_multiplier=lambda: 2)
        library = autoregressive.MaskedAffineAutoregressiveTransform
        stand_in._unconstrained_scale_and_shift = functools.partial(library._unconstrained_scale_and_shift, stand_in)
        theirs, ours = library._elementwise_forward(stand_in, x, raw), _autoregressive(module, x, raw, False)
        return None if all(map(torch.allclose, theirs, ours or ())) else "another scale activation than softplus"

    def _elementwise_forward(self, inputs, autoregressive_params):
        return _autoregressive(self, inputs, autoregressive_params, False) or super()._elementwise_forward(
            inputs, autoregressive_params
        )

    def _elementwise_inverse(self, inputs, autoregressive_params):
        return _autoregressive(self, inputs, autoregressive_params, True) or super()._elementwise_inverse(
            inputs, autoregressive_params
        )


@register(
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    runs="fk.rational_quadratic_spline",
    note="its elementwise part, as above; linear tails, or none",
)
class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_spline(module)

    def _elementwise(self, inputs, autoregressive_params, inverse=False):
        return nsf.autoregressive_spline(self, inputs, autoregressive_params, inverse) or super()._elementwise(
            inputs, autoregressive_params, inverse
        )


@register(transforms.SqueezeTransform, runs="fk.squeeze", note="on the CPU, by the factor 2, from 4096 elements on")
class SqueezeTransform(transforms.SqueezeTransform):
    def forward(self, inputs, context=None):
        if self.factor != FACTOR or not moves_lines(inputs, False):
            return super().forward(inputs, context)
        return squeeze(inputs), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs, context=None):
        if self.factor != FACTOR or not moves_lines(inputs, True):
            return super().inverse(inputs, context)
        return unsqueeze(inputs), inputs.new_zeros(inputs.shape[0])


@register(transforms.ActNorm, runs="fk.actnorm", note="initialised by the library")
class ActNorm(transforms.ActNorm):
    def forward(self, inputs, context=None):
        if not _is_channelwise(self, inputs) or (self.training and not self.initialized):
            return super().forward(inputs, context)
        return _scaled(self, inputs, False)

    def inverse(self, inputs, context=None):
        return _scaled(self, inputs, True) if _is_channelwise(self, inputs) else super().inverse(inputs, context)


def _is_channelwise(module: Any, x: Any) -> bool:
    return takes(x, module.log_scale, module.shift) and x.dim() in (2, 4) and module.log_scale.shape == x.shape[1:2]


def _scaled(module: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    y, log_det = actnorm(x, module.log_scale, module.shift, inverse=inverse)
    return y, log_det.contiguous()  # what a caller may add to in place
