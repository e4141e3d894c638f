"""The calls by which planar and radial flows are checked: both directions, deep and wide, shared parameters or not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import functional
from ..ops.planar import reference as planar_reference
from ..ops.radial import reference as radial_reference
from .case import Call, Case

NAMES = {"planar": ("u", "w", "b"), "radial": ("center", "alpha", "beta")}
REFERENCES = {"planar": planar_reference, "radial": radial_reference}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A call of a stack but for its numbers."""

    op: str
    rows: int = 65
    features: int = 6
    depth: int = 4
    per_example: bool = False
    activation: str = "tanh"
    inverse: bool = False
    transposed: bool = False


def cases() -> Iterator[Case]:
    """Every case of both ops, forward and inverse."""
    for op in NAMES:
        for name, setting in _settings(op):
            yield Case(op, f"{op}, {name}", functools.partial(_build, setting))
            inverse = dataclasses.replace(setting, inverse=True)
            yield Case(op, f"{op} inverse, {name}", functools.partial(_build, inverse))


def _settings(op: str) -> Iterator[tuple[str, Setting]]:
    yield "stack", Setting(op)
    yield "one layer", Setting(op, depth=1)
    yield "deep", Setting(op, depth=40)
    for features in (1, 2, 40, 300):
        yield f"{features} features", Setting(op, features=features)
    yield "parameters per example", Setting(op, per_example=True)
    yield "columns of a matrix", Setting(op, transposed=True)
    yield "no rows", Setting(op, rows=0)
    if op == "planar":
        yield "leaky_relu", Setting(op, activation="leaky_relu")


def _build(setting: Setting, x_dtype: torch.dtype, parameter_dtype: torch.dtype, device: torch.device) -> Call:
    x, *parameters = (t.to(device) for t in _numbers(setting))
    x = x.t().contiguous().t() if setting.transposed else x
    tensors = {"x": x.to(x_dtype)}
    tensors |= {name: p.to(parameter_dtype) for name, p in zip(NAMES[setting.op], parameters)}
    options = {"activation": setting.activation, "negative_slope": 0.2} if setting.op == "planar" else {}
    options["inverse"] = setting.inverse
    terms = setting.depth * (1 + setting.features)
    summed = terms if setting.per_example else terms * max(1, setting.rows)
    return Call(
        tensors,
        functools.partial(getattr(functional, setting.op), **options),
        functools.partial(REFERENCES[setting.op].forward, **options),
        {"y": terms, "log_det": terms, "gradient of x": terms}
        | {f"gradient of {name}": summed for name in NAMES[setting.op]},
    )


def _numbers(setting: Setting) -> tuple[Tensor, ...]:
    """x and the parameters, of well-conditioned maps."""
    random = torch.Generator().manual_seed(0)
    lead = (setting.rows, setting.depth) if setting.per_example else (setting.depth,)
    x = torch.randn(setting.rows, setting.features, generator=random)
    first, second = (torch.randn(*lead, setting.features, generator=random) for _ in range(2))
    number = torch.randn(lead, generator=random)
    if setting.op == "radial":
        return x, first, number.abs() + 0.3, torch.rand(lead, generator=random)
    scale = setting.features**-0.5
    return x, scale * first, scale * second, number
