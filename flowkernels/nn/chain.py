"""Affine couplings that follow each other in a flow, as one layer to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import plain
from ..ops import coupling_chain, perceptron
from .coupling import AffineCoupling
from .perceptron import MLP


class Chain:
    """Couplings whose conditioners are perceptrons: one node where the compiled module takes them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        found = self._run(self.layers, x, False)
        return walk(self.layers, x) if found is None else found

    def inverse(self, y: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        layers = self.layers[::-1]
        found = self._run(layers, y, True)
        return walk([layer.inverse for layer in layers], y) if found is None else found

    @staticmethod
    def _run(layers: Sequence[Any], x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
        if not perceptron.takes(x):
            return None
        steps = []
        for layer in layers:
            conditioner = layer.conditioner
            found = perceptron.read(conditioner.layers if type(conditioner) is MLP else conditioner)
            if found is None:
                return None
            steps.append(coupling_chain.Step(layer.form, layer.passive, *found))
        return coupling_chain.run(x, steps, inverse)


def walk(functions: Iterable[Any], x: Any) -> tuple[Any, Any]:
    """x after all functions, each of which returns a value and a log-determinant, and the sum of these."""
    total: Any = 0
    for function in functions:
        x, log_det = function(x)
        total = total + log_det
    return x, total


def joined(layers: Iterable[nn.Module], context: Tensor | None) -> list[tuple[int, Any]]:
    """The layers of a flow with their indices, each chain of couplings as one layer with that of its first."""
    numbered = list(enumerate(layers))
    if context is not None or torch.compiler.is_compiling():
        return numbered
    found: list[tuple[int, Any]] = []
    for chained, group in itertools.groupby(numbered, lambda pair: _joins(pair[1])):
        members = list(group)
        found += [(members[0][0], Chain([m for _, m in members]))] if chained and len(members) > 1 else members
    return found


def _joins(layer: nn.Module) -> bool:
    if type(layer) is not AffineCoupling or not layer.passive or layer.log_bound is not None or not plain(layer):
        return False
    conditioner = layer.conditioner
    if type(conditioner) is MLP:
        return not conditioner.context and plain(conditioner)
    return type(conditioner) is nn.Sequential
