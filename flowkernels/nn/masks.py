"""The masks of coupling layers: boolean, event-shaped, True = passive (kept)."""

from __future__ import annotations

import torch
from torch import Tensor


def checkerboard_mask(h: int, w: int, invert: bool = False) -> Tensor:
    """The checkerboard over the pixels of an image, one for all channels (Dinh et al. 2017, section 3.4).

    Args:
        h, w: height and width.
        invert: keep the other colour. Consecutive layers alternate.

    Returns:
        Boolean, shape (1, h, w), True (kept) where row + column is odd.

    Example:
        >>> import flowkernels as fk
        >>> fk.nn.checkerboard_mask(2, 3).int()
        tensor([[[0, 1, 0],
                 [1, 0, 1]]], dtype=torch.int32)
    """
    mask = (torch.arange(h)[:, None] + torch.arange(w)) % 2 == 1
    return (mask != invert)[None]


def channel_mask(c: int, invert: bool = False, spatial: bool = False) -> Tensor:
    """The mask that keeps the first half of the channels, the smaller half if they are odd in number.

    Args:
        c: number of channels.
        invert: keep the others. Consecutive layers alternate.
        spatial: for events (c, h, w) instead of (c,).

    Returns:
        Boolean, shape (c,), or (c, 1, 1) if `spatial`; the first c // 2 are True (kept).

    Example:
        >>> import flowkernels as fk
        >>> fk.nn.channel_mask(3)
        tensor([ True, False, False])
    """
    mask = (torch.arange(c) < c // 2) != invert
    return mask[:, None, None] if spatial else mask
