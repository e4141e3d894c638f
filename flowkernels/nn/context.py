"""How the networks of this package take a context."""

from __future__ import annotations

import torch
from torch import Tensor


def join(x: Tensor, context: Tensor | None, channels: int) -> Tensor:
    """x with the context as further channels; a context vector (B, K) is the same at every pixel.

    Args:
        x: shape (B, C, ...).
        context: shape (B, K), or (B, K, ...) with x's pixels; None where channels is 0.
        channels: K, the number that the network was built for.

    Raises:
        ValueError: for a context that the network was not built for.
    """
    if context is None and channels == 0:
        return x
    if channels == 0:
        raise ValueError(f"the model was built with context=0; got a context of shape {tuple(context.shape)}")
    pixels = x.shape[2:]
    if context is None or context.shape[1:] not in ((channels,), (channels, *pixels)):
        got = None if context is None else tuple(context.shape)
        images = f" or {(len(x), channels, *pixels)}" if pixels else ""
        raise ValueError(f"the model was built for a context of shape (B, {channels}){images}; got {got}")
    if context.dim() == 2:
        context = context.reshape(*context.shape, *(1,) * len(pixels)).expand(-1, -1, *pixels)
    return torch.cat((x, context), 1)
