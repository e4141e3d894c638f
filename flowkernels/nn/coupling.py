"""Coupling layers: part of x passes through and decides how the rest is transformed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import affine_coupling, rational_quadratic_spline
from ..ops.affine_coupling import AffineForm
from ..ops.rational_quadratic_spline import SplineForm

_TANH = AffineForm("tanh", bound=2.0)
_EIGHT_BINS = SplineForm()


def _check_partition(mask: Tensor | None, passive: int | None) -> None:
    if (mask is None) == (passive is None):
        got = "neither" if mask is None else f"both, passive={passive!r}"
        raise ValueError(f"give exactly one of mask and passive; got {got}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor, True = passive (kept); got {got}")
    if mask is None and (isinstance(passive, bool) or not isinstance(passive, int)):
        raise TypeError(f"passive must be an integer; got {passive!r}")
    if passive == 0:
        raise ValueError("passive must not be 0: the conditioner would see nothing; got 0")


def _kept(x: Tensor, mask: Tensor | None, passive: int) -> Tensor:
    """What the conditioner sees. Selected, not multiplied, so that a NaN in the transformed part cannot leak."""
    if mask is not None:
        return torch.where(mask, x, 0)
    if abs(passive) > x.shape[1]:
        raise ValueError(f"passive={passive} channels cannot be kept of x with shape {tuple(x.shape)}")
    return x[:, :passive] if passive > 0 else x[:, passive:]


class _Coupling(nn.Module):
    """A layer whose conditioner sees the kept part of x."""

    mask: Tensor | None

    def __init__(self, conditioner: Callable[..., Any], mask: Tensor | None, passive: int | None) -> None:
        super().__init__()
        _check_partition(mask, passive)
        if not callable(conditioner):
            raise TypeError(f"conditioner must be callable; got {type(conditioner).__name__}")
        self.conditioner: Any = conditioner
        self.passive = passive or 0
        # A copy of its own, so that loading a state_dict cannot write through to another layer's mask.
        self.register_buffer("mask", None if mask is None else mask.clone(memory_format=torch.contiguous_format))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, self._raw(x, context), False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, self._raw(y, context), True)

    def _raw(self, x: Tensor, context: Tensor | None) -> Any:
        kept = _kept(x, self.mask, self.passive)
        return self.conditioner(kept) if context is None else self.conditioner(kept, context)

    def _couple(self, x: Tensor, raw: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @property
    def _partition(self) -> str:
        return f"passive={self.passive}" if self.mask is None else f"mask={tuple(self.mask.shape)}"


class AffineCoupling(_Coupling):
    """Affine coupling layer: y = m x + t on one part of x, with m and t computed from the other part, which is kept.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017); `form` covers the variants of Glow,
    the UvA tutorials and other libraries. One pass of `fk.affine_coupling` computes y and log_det.

    Args:
        conditioner: called as ``conditioner(kept)``, or ``conditioner(kept, context)`` where the layer is given a
            context. With `mask`, kept is x with zeros in the place of what is transformed, and the conditioner returns
            scale and shift for the full width; with `passive`, it is the kept channels, and the conditioner returns
            those of the others. For the layouts of dimension 1, that is twice as many channels.
        mask: boolean, True = passive (kept), broadcastable to the event. A buffer, in the state_dict.
        passive: the first `passive` channels are kept, or the last if it is negative.
        form: how the conditioner's output becomes scale and shift.
        learned_bound: learn the bound of the scale map, one value per channel that the conditioner describes, as
            the parameter `log_bound`; it starts at ``form.bound``, or at 1 where that is None.
        channels: number of channels of x (dimension 1). Required with `learned_bound`, whose size a mask that
            broadcasts does not tell, and refused without.

    Shapes:
        x, y: (B, C, ...); log_det: (B,), float64 where x is, else float32.

    Raises:
        ValueError: unless exactly one of `mask` and `passive` is given; if the form lacks a bound; if `learned_bound`
            meets a scale map that has none, or no `channels`. When called: for shapes that do not fit.
        TypeError: for a mask that is not boolean.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.AffineCoupling(torch.nn.Linear(2, 4), passive=2)
        >>> x = torch.randn(8, 4)
        >>> y, log_det = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-5), log_det.shape
        (True, torch.Size([8]))

        >>> conditioner = torch.nn.Conv2d(3, 6, 3, padding=1)
        >>> layer = fk.nn.AffineCoupling(conditioner, mask=fk.nn.checkerboard_mask(8, 8))
        >>> layer(torch.randn(2, 3, 8, 8))[0].shape
        torch.Size([2, 3, 8, 8])
    """

    log_bound: nn.Parameter | None

    def __init__(
        self,
        conditioner: Callable[..., Tensor | tuple[Tensor, Tensor]],
        *,
        mask: Tensor | None = None,
        passive: int | None = None,
        form: AffineForm = _TANH,
        learned_bound: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(conditioner, mask, passive)
        if not isinstance(form, AffineForm):
            raise TypeError(f"form must be an AffineForm; got {type(form).__name__}")
        self.form = dataclasses.replace(form, bound=None) if learned_bound else form
        self.register_parameter("log_bound", _log_bound(form, self.passive, channels) if learned_bound else None)
        if not learned_bound:
            if channels is not None:
                raise ValueError(f"channels means something with learned_bound=True only; got channels={channels}")
            if form.bounded and form.bound is None:
                raise ValueError(f"scale {form.scale!r} needs a bound: form.bound or learned_bound=True; got neither")

    def _couple(self, x: Tensor, raw: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        bound = None if self.log_bound is None else self.log_bound.exp()
        return affine_coupling(
            x, raw, form=self.form, mask=self.mask, passive=self.passive or None, bound=bound, inverse=inverse
        )

    def extra_repr(self) -> str:
        learned = "" if self.log_bound is None else f", learned_bound: {len(self.log_bound)} channels"
        return f"{self._partition}, form: {self.form.spec or 'scale=exp'}{learned}"


def _log_bound(form: AffineForm, passive: int, channels: int | None) -> nn.Parameter:
    if not form.bounded:
        raise ValueError(f"learned_bound=True needs a scale map with a bound; scale {form.scale!r} has none")
    if channels is None:
        raise ValueError("learned_bound=True needs channels, the number of channels of x; got None")
    transformed = channels - abs(passive)
    if transformed < 1:
        raise ValueError(f"channels must exceed the kept ones; got channels={channels}, passive={passive}")
    return nn.Parameter(torch.full((transformed,), math.log(form.bound or 1.0)))


class SplineCoupling(_Coupling):
    """Spline coupling layer: a rational-quadratic spline of each element of one part of x, with parameters computed
    from the other part, which is kept.

    Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows" (2019). One pass of `fk.rational_quadratic_spline`
    computes y and log_det.

    Args:
        conditioner: called as ``conditioner(kept)``, or ``conditioner(kept, context)`` where the layer is given a
            context. With `mask`, kept is x with zeros in the place of what is transformed, and the conditioner returns
            the parameters of the full width; with `passive`, it is the kept channels, and the conditioner returns those
            of the others: ``form.parameters`` for each element.
        mask: boolean, True = passive (kept), broadcastable to the event. A buffer, in the state_dict.
        passive: the first `passive` channels are kept, or the last if it is negative.
        form: how the conditioner's output becomes knots and derivatives, and what happens outside of the box.

    Shapes:
        x, y: (B, C, ...); log_det: (B,), float64 where x is, else float32.

    Raises:
        ValueError: unless exactly one of `mask` and `passive` is given. When called: for shapes that do not fit.
        TypeError: for a mask that is not boolean.

    Example:
        >>> import torch, flowkernels as fk
        >>> _ = torch.manual_seed(0)  # one draw in 200 has slopes on which float32 loses more than 1e-4
        >>> form = fk.SplineForm(bins=8, bound=3.0)
        >>> layer = fk.nn.SplineCoupling(torch.nn.Linear(2, 2 * form.parameters), passive=2, form=form)
        >>> x = torch.randn(8, 4)
        >>> y, log_det = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-4), log_det.shape
        (True, torch.Size([8]))
    """

    def __init__(
        self,
        conditioner: Callable[..., Tensor],
        *,
        mask: Tensor | None = None,
        passive: int | None = None,
        form: SplineForm = _EIGHT_BINS,
    ) -> None:
        super().__init__(conditioner, mask, passive)
        if not isinstance(form, SplineForm):
            raise TypeError(f"form must be a SplineForm; got {type(form).__name__}")
        self.form = form

    def _couple(self, x: Tensor, raw: Any, inverse: bool) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(
            x, raw, form=self.form, mask=self.mask, passive=self.passive or None, inverse=inverse
        )

    def extra_repr(self) -> str:
        return f"{self._partition}, form: {self.form.spec}"
