"""Calls of planar and radial flows that between them reach every branch of every backend."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

import flowkernels as fk
from flowkernels.ops.planar import reference as planar_reference
from flowkernels.ops.radial import reference as radial_reference

from .affine_cases import strided

NAMES = {"planar": ("u", "w", "b"), "radial": ("center", "alpha", "beta")}
REFERENCES = {"planar": planar_reference, "radial": radial_reference}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an op: x's shape, the depth, and what its parameters are like."""

    op: str
    rows: int = 5
    features: int = 3
    depth: int = 4
    activation: str = "tanh"
    per_example: bool = False
    inverse: bool = False
    strides: str = "contiguous"

    def __str__(self) -> str:
        words = [f"{self.rows}x{self.features}x{self.depth}"]
        words += [self.activation] * (self.activation != "tanh") + [self.strides] * (self.strides != "contiguous")
        words += [name for name in ("per_example", "inverse") if getattr(self, name)]
        return "-".join(words)

    @property
    def options(self) -> dict[str, object]:
        activation = {"activation": self.activation, "negative_slope": 0.3} if self.op == "planar" else {}
        return {**activation, "inverse": self.inverse}


def inputs(call: Call) -> dict[str, Tensor]:
    """Random float64 inputs whose maps are well conditioned."""
    lead = (call.rows, call.depth) if call.per_example else (call.depth,)
    x = strided(1.5 * torch.randn(call.rows, call.features, dtype=torch.float64), call.strides)
    vector = torch.randn(*lead, call.features, dtype=torch.float64)
    number = torch.randn(lead, dtype=torch.float64)
    if call.op == "radial":
        return {"x": x, "center": vector, "alpha": number.abs() + 0.3, "beta": torch.randn_like(number)}
    scale = 1 / max(1, call.features) ** 0.5
    return {"x": x, "u": vector * scale, "w": torch.randn_like(vector) * scale, "b": number}


def run(call: Call, tensors: dict[str, Tensor], **changed: object) -> tuple[Tensor, Tensor]:
    """The op of a call on tensors of those names."""
    return getattr(fk, call.op)(*tensors.values(), **{**call.options, **changed})


def calls(op: str) -> list[Call]:
    """Every branch of one op."""
    base = Call(op)
    shapes = [
        *(dataclasses.replace(base, rows=rows) for rows in (0, 1, 31, 64, 65, 130)),
        *(dataclasses.replace(base, features=features, rows=3) for features in (0, 1, 2, 8, 9, 33, 127, 300)),
        *(dataclasses.replace(base, depth=depth) for depth in (0, 1, 5, 33)),
        *(dataclasses.replace(base, strides=strides) for strides in ("offset", "slice", "transposed", "expanded")),
    ]
    activations = ("tanh", "leaky_relu") if op == "planar" else ("tanh",)
    return [
        dataclasses.replace(call, inverse=inverse, per_example=per_example, activation=activation)
        for call in shapes
        for inverse in (False, True)
        for per_example in (False, True)
        for activation in activations
        if activation == "tanh" or call in shapes[2:4]
    ]


def small(op: str) -> list[Call]:
    """Few rows and features, for what takes many evaluations."""
    return [c for c in calls(op) if 0 < c.rows * c.features * c.depth <= 60 and c.rows <= 5]
