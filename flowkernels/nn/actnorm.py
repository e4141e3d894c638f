"""Activation normalisation: a scale and a shift for each channel, which start from the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..functional import actnorm
from .arguments import whole

# A channel whose deviation is below this, relative to its mean, is constant but for rounding.
_CONSTANT = 1e-6


class ActNorm(nn.Module):
    """Scale and shift of each channel: y = exp(log_scale) x + shift, log_det = H W sum(log_scale).

    Kingma and Dhariwal, "Glow" (2018), section 3.1. The first call in training mode sets the parameters such that
    each channel of its result has mean 0 and deviation 1 over batch and pixels: in `forward`
    ``log_scale = -log std(x)``, ``shift = -mean(x) / std(x)``; if `inverse` comes first, while gradients are computed,
    ``log_scale = log std(y)``, ``shift = mean(y)``. Deviations are those of the population (divided by the number of
    values). A channel that is constant there, as all are in a batch of one vector, gets scale 1.

    Under torch.distributed the statistics are those of all ranks together, so that all start alike; every rank must
    then make that first call. Drawing samples without gradients and calls in evaluation mode initialise nothing.

    Args:
        channels: size C of dimension 1.

    Parameters `log_scale` and `shift` (C,). The buffer `initialized`, a bool, is in the state_dict. After the
    initialisation it is not read any more, so that no call waits for the device; make the first call before
    ``torch.compile(fullgraph=True)`` or the capture of a CUDA graph.

    Shapes:
        x, y: (B, C, ...); log_det: (B,), float64 where x is, else float32. A context is accepted and not used.

    Raises:
        ValueError: for a number out of range. When called: for an x with another number of channels.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.ActNorm(3)
        >>> x = 5 + 2 * torch.randn(16, 3, 8, 8)
        >>> y, log_det = layer(x)
        >>> y.mean().abs().item() < 1e-5, y.std(correction=0).sub(1).abs().item() < 1e-5, log_det.shape
        (True, True, torch.Size([16]))
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        whole("channels", channels, 1)
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))
        self._settled = False  # the buffer is known to be True: saves reading it, which waits for the device

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.pending():
            self.initialize(x)
        return actnorm(x, self.log_scale, self.shift)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.pending(inverse=True):
            self.initialize(y, inverse=True)
        return actnorm(y, self.log_scale, self.shift, inverse=True)

    def pending(self, inverse: bool = False) -> bool:
        """Whether a call now would initialise the parameters."""
        if self._settled or not self.training or (inverse and not torch.is_grad_enabled()):
            return False
        self._settled = bool(self.initialized)
        return not self._settled

    @torch.no_grad()
    def initialize(self, x: Tensor, inverse: bool = False) -> None:
        """Set the parameters such that `forward` of x, or `inverse` of it, is normalised."""
        _check_channels(x, len(self.shift))
        mean, std = _moments(x)
        self.log_scale.copy_(std.log() if inverse else -std.log())
        self.shift.copy_(mean if inverse else -mean / std)
        self.initialized.fill_(True)
        self._settled = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settled = not self.initialized.is_meta and bool(self.initialized)

    def extra_repr(self) -> str:
        return f"{len(self.shift)}"


def _check_channels(x: Tensor, channels: int) -> None:
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (B, {channels}, ...); got {tuple(x.shape)}")


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over the batch and the pixels, of all ranks together."""
    values = x.transpose(0, 1).flatten(1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    total = _over_ranks(torch.cat((values.sum(1), values.new_tensor([values.shape[1]]))))
    count = total[-1].clamp(min=1)
    mean = total[:-1] / count
    std = (_over_ranks((values - mean[:, None]).square().sum(1)) / count).sqrt()
    return mean, torch.where(std > _CONSTANT * (1 + mean.abs()), std, 1.0)


def _over_ranks(total: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    return total
