"""Linear layers with ReLU between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from ..ops.perceptron import run
from .context import join


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for linear in layers[:-1] for part in (linear, nn.ReLU())), layers[-1])


class MLP(nn.Module):
    """The conditioner of `realnvp` and `nsf`: linear layers with ReLU between them; the last starts at zero.

    A coupling whose conditioner returns zero is the identity, so a flow of these starts there.
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int], context: int = 0) -> None:
        super().__init__()
        self.context = context
        sizes = [inputs + context, *hidden, outputs]
        self.layers = perceptron(sizes)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
        x = join(kept, context, self.context)
        y = run(self.layers, x)
        return self.layers(x) if y is None else y
