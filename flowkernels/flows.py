"""A normalizing flow: layers and a base distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .bases import DistributionBase, StandardNormal, checked_event_shape
from .nn.chain import joined


def _described(index: int, layer: object) -> str:
    return f"layer {index} ({type(layer).__name__})"


def _accumulated(part: Tensor) -> Tensor:
    """A layer's or the base's log-density in float32, or float64 where it is."""
    return part.to(torch.promote_types(part.dtype, torch.float32))


class Flow(nn.Module):
    """A density over x, given by layers that map x to latents and a base distribution over the last latent.

    Args:
        layers: modules in the order data -> latent, each with ``forward(x, context)`` and ``inverse(y, context)``
            that return ``(value, log_det)``. One that removes dimensions instead has
            ``encode(x, context) -> (y, out, log_prob)``, with the latent `out` and its log-density,
            ``decode(y, out, context) -> x`` and ``sample_out(y, context, temperature, generator) -> out``.
        base: None for a standard normal; a `torch.distributions` distribution, whose batch dimensions count as
            event dimensions and whose tensors become buffers; or a module with `event_shape`,
            ``log_prob(z, context) -> (B,)`` and ``rsample(n, context, temperature, generator) -> (n, *event_shape)``,
            in which the context, if any, has one row per sample.
        event_shape: shape of the last latent without the batch, which is x's unless a layer changes it. A standard
            normal needs it to sample; beside another base it must agree.

    A `context`, if given, is a tensor with one row per example; every layer and the base receive it.

    Raises:
        TypeError: for a layer or a base without the methods above, naming it.
        ValueError: for an `event_shape` that is not that of the base.

    Papers: Rezende and Mohamed, "Variational inference with normalizing flows" (2015); Dinh, Sohl-Dickstein and
    Bengio, "Density estimation using Real NVP" (2017).

    Example:
        >>> import torch, flowkernels as fk
        >>> layers = [fk.nn.AffineCoupling(torch.nn.Linear(1, 2), passive=p) for p in (1, -1)]
        >>> flow = fk.Flow(layers, event_shape=(2,))
        >>> flow.log_prob(torch.randn(16, 2)).shape, flow.sample(5).shape
        (torch.Size([16]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        base: nn.Module | Distribution | None = None,
        *,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        layers = list(layers)
        for index, layer in enumerate(layers):
            _check_layer(index, layer)
        self.layers: Any = nn.ModuleList(layers)
        shape = None if event_shape is None else torch.Size(event_shape)
        if base is None:
            base = StandardNormal(shape)
        elif isinstance(base, Distribution):
            base = DistributionBase(base)
        of_base = checked_event_shape(base)
        if shape is not None and of_base != shape:
            raise ValueError(f"event_shape={tuple(shape)} is not that of the base, {tuple(of_base or ())}")
        self.base: Any = base

    @property
    def event_shape(self) -> torch.Size | None:
        """Shape of the last latent without the batch, None where a standard normal was not told it."""
        return self.base.event_shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`log_prob`. Call the flow itself under DistributedDataParallel, whose hooks fire through `forward`."""
        _, log_prob = self._encode(x, context)
        return log_prob

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of each row of x, shape (B,); float64 where the layers return that, else float32.

        With a dequantizing layer it is the (stochastic) lower bound on the log-probability of discrete x.
        """
        return self.forward(x, context)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """The latents of x: those that layers took out, in that order, then the last one."""
        latents, _ = self._encode(x, context)
        return latents

    def decode(self, latents: Sequence[Tensor], context: Tensor | None = None) -> Tensor:
        """The x whose latents these are: the inverse of `encode`.

        Raises:
            ValueError: for a wrong number of latents.
        """
        if isinstance(latents, Tensor):
            raise TypeError("latents must be a sequence of tensors, as encode returns it; got a tensor")
        expected = 1 + sum(hasattr(layer, "encode") for layer in self.layers)
        if len(latents) != expected:
            raise ValueError(f"this flow has {expected} latents; got {len(latents)}")
        y = latents[-1]
        _check_context(context, y.shape[0])
        outs = list(latents[:-1])
        for _, layer in reversed(joined(self.layers, context)):
            y = layer.decode(y, outs.pop(), context) if hasattr(layer, "encode") else layer.inverse(y, context)[0]
        return y

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw n examples, or n for each row of the context.

        Args:
            n: number of samples.
            context: shape (B, ...).
            temperature: scales the standard deviation of the latents; 0 gives their mean.
            generator: in place of torch's global one; on the flow's device.

        Returns:
            Shape (n, *event), or (B, n, *event) with a context.

        Raises:
            ValueError: for a negative n or temperature, or for a standard normal base without `event_shape`.
        """
        if not temperature >= 0:
            raise ValueError(f"temperature must not be negative; got {temperature!r}")
        rows, each = _repeated(n, context)
        y = self.base.rsample(rows, each, temperature, generator)
        for _, layer in reversed(joined(self.layers, each)):
            if hasattr(layer, "encode"):
                y = layer.decode(y, layer.sample_out(y, each, temperature, generator), each)
            else:
                y, _ = layer.inverse(y, each)
        return _grouped(y, n, context)

    def rsample_and_log_prob(self, n: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Samples, differentiable in the parameters, and their log-densities, in one pass through the layers.

        Returns:
            Samples of shape (n, *event) and log-densities of shape (n,); with a context of B rows, (B, n, *event)
            and (B, n).

        Raises:
            ValueError: for a flow with a dequantizing layer, whose samples are whole numbers.
        """
        if self._dequantizes():
            raise ValueError("the samples of a flow with a dequantizing layer are discrete: they have no gradient")
        rows, each = _repeated(n, context)
        y = self.base.rsample(rows, each, 1.0, None)
        log_prob = _accumulated(self.base.log_prob(y, each))
        for index, layer in reversed(joined(self.layers, each)):
            if hasattr(layer, "encode"):
                y = layer.decode(y, layer.sample_out(y, each, 1.0, None), each)
                part = layer.encode(y, each)[2]
            else:
                y, log_det = _pair(index, layer, layer.inverse(y, each))
                part = -log_det
            log_prob = log_prob + self._part(index, layer, part, rows)
        return _grouped(y, n, context), _grouped(log_prob, n, context)

    def bits_per_dim(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Negative log-probability of discrete x in bits, per element of x: an upper bound, shape (B,).

        Raises:
            ValueError: if no layer dequantizes: a density of continuous x has no meaning in bits.
        """
        if not self._dequantizes():
            raise ValueError("bits_per_dim needs a dequantizing layer, such as fk.nn.Dequantize; this flow has none")
        return self.forward(x, context) / (-math.log(2) * math.prod(x.shape[1:]))

    def _encode(self, x: Tensor, context: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        rows = x.shape[0]
        _check_context(context, rows)
        log_prob: Tensor | None = None
        latents = []
        y = x
        for index, layer in joined(self.layers, context):
            if hasattr(layer, "encode"):
                y, out, part = layer.encode(y, context)
                latents.append(out)
            else:
                y, part = _pair(index, layer, layer(y, context))
            part = self._part(index, layer, part, rows)
            log_prob = part if log_prob is None else log_prob + part
        last = _accumulated(self.base.log_prob(y, context))
        return (*latents, y), last if log_prob is None else log_prob + last

    @staticmethod
    def _part(index: int, layer: nn.Module, part: Tensor, rows: int) -> Tensor:
        if not isinstance(part, Tensor) or part.shape != (rows,):
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{_described(index, layer)} must return a log_det of shape ({rows},); got {got}")
        return _accumulated(part)

    def _dequantizes(self) -> bool:
        return any(getattr(layer, "dequantizes", False) for layer in self.layers)


def _check_layer(index: int, layer: object) -> None:
    if not isinstance(layer, nn.Module):
        raise TypeError(f"{_described(index, layer)} must be a module")
    needed = ("encode", "decode", "sample_out") if hasattr(layer, "encode") else ("forward", "inverse")
    missing = [name for name in needed if not hasattr(layer, name)]
    if missing:
        raise TypeError(f"{_described(index, layer)} must have {' and '.join(needed)}; it lacks {', '.join(missing)}")


def _check_context(context: Tensor | None, rows: int) -> None:
    if context is not None and context.shape[:1] != (rows,):
        raise ValueError(f"context must have one row for each of the {rows} of x; got shape {tuple(context.shape)}")


def _pair(index: int, layer: nn.Module, result: object) -> tuple[Tensor, Tensor]:
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError(f"{_described(index, layer)} must return (value, log_det); got {type(result).__name__}")
    return result[0], result[1]


def _repeated(n: int, context: Tensor | None) -> tuple[int, Tensor | None]:
    """The number of samples in all, and the context of each."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"n must be a whole number, not negative; got {n!r}")
    if context is None:
        return n, None
    if context.dim() == 0:
        raise ValueError("context must have one row per example; got a scalar")
    return n * context.shape[0], context.repeat_interleave(n, 0)


def _grouped(values: Tensor, n: int, context: Tensor | None) -> Tensor:
    return values if context is None else values.reshape(context.shape[0], n, *values.shape[1:])
