"""A layer with its two directions exchanged."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Inverse(nn.Module):
    """A layer used the other way round: `forward` is its `inverse`, and `inverse` its `forward`.

    Args:
        layer: a module with `forward` and `inverse`, each returning ``(value, log_det)``.

    Raises:
        TypeError: if the layer has no `inverse`.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.Permute(3, [1, 2, 0])
        >>> fk.nn.Inverse(layer)(layer(torch.arange(3.0)[None])[0])[0]
        tensor([[0., 1., 2.]])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, nn.Module) or not hasattr(layer, "inverse"):
            raise TypeError(f"layer must be a module with forward and inverse; got {type(layer).__name__}")
        self.layer: Any = layer

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(y, context)
