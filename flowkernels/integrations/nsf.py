"""What nflows and normflows have in common: both have the couplings and splines of github.com/bayesiains/nsf."""

from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._compat import plain
from ..functional import rational_quadratic_spline
from ..ops import perceptron
from ..ops.rational_quadratic_spline import SplineForm
from .core import Given, takes

# op(module, x, raw, passive, inverse): y and log_det of the transformed channels, or None where it does not take raw.
Op = Callable[[Any, Tensor, Any, "int | None", bool], "tuple[Tensor, Tensor] | None"]


class Partition(NamedTuple):
    """Which channels a coupling keeps and which it transforms.

    Args:
        passive: as the ops have it, where the kept ones are the first or the last; else None.
        first: 0 or 1, where they alternate: the place of the kept ones in each pair; else None.
        order: of each channel, its place after kept and transformed ones have been joined.
    """

    passive: int | None
    first: int | None
    order: Tensor


# What a module's index buffers say, with the buffers and versions that said it.
_partitions: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()


def partition(module: Any) -> Partition:
    """What the module's buffers say now; they are read again only if they changed, since that waits for the device."""
    kept, moved = module.identity_features, module.transform_features
    versions = _version(kept), _version(moved)
    seen = _partitions.get(module)
    if seen is None or seen[0] is not kept or seen[1] is not moved or seen[2] != versions:
        order = torch.argsort(torch.cat((kept, moved)))
        found = _described(kept.tolist(), moved.tolist(), order)
        seen = _partitions[module] = (kept, moved, versions, found)
    return seen[3]


def _version(t: Tensor) -> int:
    """How often a tensor has been changed in place; -1 where torch does not count."""
    return -1 if t.is_inference() else t._version


def _described(kept: list[int], moved: list[int], order: Tensor) -> Partition:
    total = len(kept) + len(moved)
    if kept and moved and kept + moved == list(range(total)):
        return Partition(len(kept), None, order)
    if kept and moved and moved + kept == list(range(total)):
        return Partition(-len(kept), None, order)
    for first in (0, 1):
        if kept == list(range(first, total, 2)) and moved == list(range(1 - first, total, 2)) and total % 2 == 0:
            return Partition(None, first, order)
    return Partition(None, None, order)


def _select(x: Tensor, parts: Partition, features: Tensor, first: int) -> Tensor:
    """Copies, as the library has them: a network that works in place must not reach the caller's tensor."""
    if parts.first is None:
        return x.index_select(1, features)
    return x[:, first::2].clone()


def _join(kept: Tensor, moved: Tensor, parts: Partition) -> Tensor:
    if parts.first is None:
        return torch.cat((kept, moved), 1).index_select(1, parts.order)
    return torch.stack((moved, kept) if parts.first else (kept, moved), 2).flatten(1, 2)


def couple(module: Any, inputs: Any, context: Any, original: Callable, inverse: bool, op: Op) -> tuple[Any, Any]:
    """A coupling's forward or inverse by an op; by the library's `original` where that does not take the call."""
    if not takes(inputs) or inputs.dim() not in (2, 4) or inputs.shape[1] != module.features:
        return original(module, inputs, context)
    parts, unconditional = partition(module), module.unconditional_transform
    kept = _select(inputs, parts, module.identity_features, parts.first or 0)
    kept_log_det = None
    if inverse and unconditional is not None:
        kept, kept_log_det = unconditional.inverse(kept, context)
    raw = module.transform_net(kept, context)
    # What the network did to its copy in place is in the library's output, so the input may not stand in for it then.
    whole = unconditional is None and parts.passive is not None and _version(kept) == 0
    x = inputs if whole else _select(inputs, parts, module.transform_features, 1 - (parts.first or 0))
    found = op(module, x, raw, parts.passive if whole else None, inverse)
    if found is None:
        undone = unconditional
        if kept_log_det is not None:
            undone = types.SimpleNamespace(inverse=lambda *_: (kept, kept_log_det))
        given = Given(module, transform_net=lambda *_: raw, unconditional_transform=undone)
        return original(given, inputs, context)
    y, log_det = found
    if whole:
        return y, log_det
    if not inverse and unconditional is not None:
        kept, kept_log_det = unconditional(kept, context)
    return _join(kept, y, parts), log_det if kept_log_det is None else log_det + kept_log_det


_RELUS = ((F.relu, 0.0), (torch.relu, 0.0), (F.leaky_relu, 0.01))


def _slope(activation: Any) -> float | None:
    """Below zero; None for an unknown activation, and for one in place, which would reach the block's input."""
    if isinstance(activation, nn.Module):
        return None if getattr(activation, "inplace", False) else perceptron.slope_of(activation)
    return next((slope for known, slope in _RELUS if activation is known), None)


def _read_residual(net: Any, library: Any) -> tuple[list[Tensor], float] | None:
    """Parameters and slope of a ResidualNet in the perceptron's order; None for one with other layers.

    Dropout is there where it does nothing, which calls differ in.
    """
    layers, slopes = [net.initial_layer], set()
    for block in net.blocks:
        if type(block) is not library.ResidualBlock or type(block.dropout) is not nn.Dropout or block.use_batch_norm:
            return None
        if not plain(block) or not plain(block.dropout) or len(block.linear_layers) != 2:
            return None
        slopes.add(_slope(block.activation))
        layers += block.linear_layers
    slope = slopes.pop() if slopes else 1.0
    parameters = perceptron.read_linear([*layers, net.final_layer])
    return None if slopes or slope is None or parameters is None else (parameters, slope)


def refuse_residual(net: Any, library: Any) -> str | None:
    # A network is no layer of a flow: nothing to report.
    return None if net.context_features is None and _read_residual(net, library) else ""


def residual(net: Any, x: Any, context: Any, library: Any) -> Any:
    """What a ResidualNet returns; by the layers of its library, the module `resnet`, where one pass is not enough."""
    found = _read_residual(net, library) if context is None and perceptron.takes(x) else None
    y = None
    if found and not any(block.dropout.training and block.dropout.p for block in net.blocks):
        y = perceptron.perceptron(x, *found, residual=True)
    return library.ResidualNet.forward(net, x, context) if y is None else y


@functools.lru_cache(maxsize=256)
def _form(bins: int, bound: float, tails: str | None, sizes: tuple, scale: float, layout: str) -> SplineForm:
    width, height, derivative = sizes
    box = (0.0, 1.0, 0.0, 1.0) if tails is None else (-bound, bound, -bound, bound)
    return SplineForm(
        bins,
        box=box,
        tails=tails,
        min_width=width,
        min_height=height,
        min_derivative=derivative,
        logit_scale=scale,
        layout=layout,
    )


_ADJACENT = "widths_heights_derivatives"


def spline_form(module: Any, bins: int, scale: float = 1.0, layout: str = _ADJACENT) -> SplineForm | str:
    """The form of a module's splines, or why they have none here."""
    tails, bound = module.tails, module.tail_bound
    if tails not in ("linear", "circular", None):
        return f"tails {tails!r}" if isinstance(tails, str) else "tails that differ between features"
    if isinstance(bound, Tensor):
        return "a bound of its own for each feature"
    sizes = module.min_bin_width, module.min_bin_height, module.min_derivative
    try:
        return _form(bins, float(bound), tails, sizes, scale, layout)
    except (TypeError, ValueError) as error:
        return str(error)


def _logit_scale(net: Any, *names: str) -> float | None:
    """What the library multiplies widths and heights by: the size of a hidden layer, if the network tells it."""
    found = next((getattr(net, name) for name in names if hasattr(net, name)), None)
    return None if found is None else found**-0.5


def _in_domain(x: Tensor, form: SplineForm) -> bool:
    """Without tails the library refuses points outside of the box; whether it will is its own to say."""
    if form.tails is not None:
        return True
    if x.numel() == 0:
        return False
    low, high = torch.aminmax(x)
    return bool((low >= 0) & (high <= 1))


def refuse_spline(module: Any) -> str | None:
    form = spline_form(module, getattr(module, "num_bins", 1))
    return form if isinstance(form, str) else None


def refuse_cdf(module: Any) -> str | None:
    form = spline_form(module, module.unnormalized_widths.shape[-1])
    return form if isinstance(form, str) else None


def spline(module: Any, x: Tensor, raw: Any, passive: int | None, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The op of a spline coupling."""
    scale = _logit_scale(module.transform_net, "hidden_features", "hidden_channels")
    form = spline_form(module, module.num_bins, scale or 1.0)
    active = x.shape[1] - abs(passive or 0)
    if isinstance(form, str) or not takes(x, raw):
        return None
    if raw.shape != (x.shape[0], active * form.parameters, *x.shape[2:]):
        return None
    moved = x if not passive else x[:, passive:] if passive > 0 else x[:, :passive]
    if not _in_domain(moved, form):
        return None
    if scale is None:
        warnings.warn("Inputs to the softmax are not scaled down: initialization might be bad.", stacklevel=4)
    return rational_quadratic_spline(x, raw, form=form, passive=passive, inverse=inverse)


def autoregressive_spline(module: Any, inputs: Any, raw: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The splines of an autoregressive layer, which are those of all its features."""
    form = spline_form(module, module.num_bins, _logit_scale(module.autoregressive_net, "hidden_features") or 1.0)
    if isinstance(form, str) or not takes(inputs, raw) or inputs.dim() != 2 or not _in_domain(inputs, form):
        return None
    if raw.shape != (inputs.shape[0], inputs.shape[1] * form.parameters):
        return None
    return rational_quadratic_spline(inputs, raw, form=form, inverse=inverse)


def cdf(module: Any, inputs: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Splines with parameters of their own, the same for every row."""
    columns = module.unnormalized_widths, module.unnormalized_heights, module.unnormalized_derivatives
    form = spline_form(module, columns[0].shape[-1], layout=f"trailing_{_ADJACENT}")
    if isinstance(form, str) or not takes(inputs, *columns) or inputs.shape[1:] != columns[0].shape[:-1]:
        return None
    raw = torch.cat(columns, -1)
    if raw.shape[-1] != form.parameters or not _in_domain(inputs, form):
        return None
    return rational_quadratic_spline(inputs, raw.expand(len(inputs), *raw.shape), form=form, inverse=inverse)
