"""What planar and radial layers have in common: K maps in one call, one direction in closed form, one solved for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arguments import whole


class Stack(nn.Module):
    """K maps of a row. A subclass says how `_map` is computed; `generative` says which direction is its inverse."""

    def __init__(self, features: int, depth: int, generative: bool) -> None:
        super().__init__()
        whole("features", features, 1)
        whole("depth", depth, 0)
        self.features = features
        self.depth = depth
        self.generative = bool(generative)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, context, self.generative)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(y, context, not self.generative)

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.features}, depth={self.depth}" + ("" if self.generative else ", generative=False")


class Amortization(nn.Linear):
    """A linear map from a context to the parameters of each example's own stack, which starts as given `parameters`.

    The weight starts at 0, so that at first all examples have the same parameters. `damped` divides the context by
    the root of its width: Adam moves every weight alike, so that a step moves the output by lr times the sum of the
    context, which is much for the parameters of a deep stack. What belongs to one parameter is contiguous in a row of
    the output, which is how the kernels read it.
    """

    def __init__(self, context_features: int, parameters: tuple[Tensor, ...], *, damped: bool) -> None:
        whole("context_features", context_features, 1)
        self.shapes = [p.shape for p in parameters]
        self.scale = context_features**-0.5 if damped else 1.0
        super().__init__(context_features, sum(p.numel() for p in parameters))
        with torch.no_grad():
            self.bias.copy_(torch.cat([p.flatten() for p in parameters]))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def split(self, context: Tensor | None) -> list[Tensor]:
        """The parameters of each row of the context, shapes (B, ...).

        Raises:
            ValueError: for a context that is missing or has another width.
        """
        if context is None or context.dim() != 2 or context.shape[1] != self.in_features:
            got = None if context is None else tuple(context.shape)
            raise ValueError(f"the layer was built for a context of shape (B, {self.in_features}); got {got}")
        parts = self(context * self.scale).split([shape.numel() for shape in self.shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]
