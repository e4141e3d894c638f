"""A call whose results are known in float64, and how far a backend is from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..tolerances import error, tolerance

Function = Callable[..., tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation.

    Args:
        tensors: the differentiable arguments by name.
        fused: the operation, from `tensors` as keyword arguments to (y, log_det).
        exact: the same in plain PyTorch, for `tensors` in float64.
        terms: how many summands the elements of a result have, where they are sums.
    """

    tensors: Mapping[str, Tensor]
    fused: Function
    exact: Function
    terms: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A named call of an operation, for a dtype of x and one of what parametrises the map."""

    op: str
    name: str
    build: Callable[[torch.dtype, torch.dtype, torch.device], Call]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The `error` of each result of a call, and what is tolerated."""

    errors: Mapping[str, float]
    tolerances: Mapping[str, float]

    @property
    def worst(self) -> float:
        return max(self.errors.values())

    @property
    def excess(self) -> float:
        """The largest error as a multiple of what is tolerated: above 1 the backend is wrong."""
        return max(self.errors[name] / self.tolerances[name] for name in self.errors)


def compare(call: Call) -> Comparison:
    """Values and gradients of a call, by the backend in force, with those in float64."""
    leaves = {name: t.detach().requires_grad_() for name, t in call.tensors.items()}
    outputs = call.fused(**leaves)
    random = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=random).to(t) for t in outputs]
    found = _named(leaves, outputs, cotangents)
    # The exact results start from the same rounded numbers.
    leaves = {name: t.detach().double().requires_grad_() for name, t in call.tensors.items()}
    exact = _named(leaves, call.exact(**leaves), [t.double() for t in cotangents])
    return Comparison(
        {name: error(value, exact[name]) for name, value in found.items()},
        {name: _tolerance(name, found, call.terms) for name in found},
    )


def _named(leaves: Mapping[str, Tensor], outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
    wanted = [(t, g) for t, g in zip(outputs, cotangents) if t.requires_grad]  # log_det may be constant
    values, given = zip(*wanted)
    gradients = torch.autograd.grad(values, tuple(leaves.values()), given)
    return {"y": outputs[0], "log_det": outputs[1], **{f"gradient of {n}": g for n, g in zip(leaves, gradients)}}


def _tolerance(name: str, found: Mapping[str, Tensor], terms: Mapping[str, int]) -> float:
    dtypes = [found[name].dtype]
    if name.startswith("gradient"):  # it may be computed from y, which is rounded to its dtype
        dtypes.append(found["y"].dtype)
    return max(tolerance(dtype, terms.get(name, 1)) for dtype in dtypes)
