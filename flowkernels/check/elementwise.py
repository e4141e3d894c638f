"""The calls by which dequantization and split are checked: images and vectors, short rows and long ones, any layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import functional
from ..ops.dequantize import reference as dequantize_reference
from .case import Call, Case

SHAPES: dict[str, tuple[int, ...]] = {
    "images": (5, 4, 8, 8),
    "short rows": (65, 6),
    "rows in pieces": (2, 40002),
    "one pixel": (3, 2, 1, 1),
    "no rows": (0, 4),
}
PRIORS = {"standard": (), "mean": ("mean",), "both": ("mean", "log_std")}


def cases() -> Iterator[Case]:
    """Every case of both ops."""
    for name, shape in SHAPES.items():
        for levels in (256, 17):
            build = functools.partial(_dequantize, shape, levels, False)
            yield Case("dequantize", f"dequantize, {name}, {levels} levels", build)
        for kind in PRIORS:
            yield Case("split", f"split, {name}, prior: {kind}", functools.partial(_split, shape, kind, False))
    last = SHAPES["images"]
    yield Case("dequantize", "dequantize, channels_last", functools.partial(_dequantize, last, 256, True))
    yield Case("split", "split, channels_last", functools.partial(_split, last, "both", True))


def _laid_out(t: Tensor, channels_last: bool, device: torch.device) -> Tensor:
    return t.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _dequantize(
    shape: tuple[int, ...],
    levels: int,
    channels_last: bool,
    x_dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    device: torch.device,
) -> Call:
    """The numbers are stored as bytes, or as the dtype of the parameters."""
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(shape, generator=random).clamp(2**-10, 1 - 2**-10)
    numbers = torch.randint(levels, shape, generator=random)
    stored = torch.uint8 if parameter_dtype == torch.float32 else torch.int32
    x = _laid_out(numbers, channels_last, device).to(stored)
    return Call(
        {"noise": _laid_out(noise, channels_last, device).to(x_dtype)},
        lambda noise: functional.dequantize(x, noise, levels=levels),
        lambda noise: dequantize_reference.forward(noise, x, levels, 1e-5),
        {"log_det": math.prod(shape[1:]), "gradient of noise": 16},  # a product of several elementary functions
    )


def _split(
    shape: tuple[int, ...],
    kind: str,
    channels_last: bool,
    x_dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    device: torch.device,
) -> Call:
    random = torch.Generator().manual_seed(0)
    half = (shape[0], shape[1] // 2, *shape[2:])
    tensors = {"x": _laid_out(torch.randn(shape, generator=random), channels_last, device).to(x_dtype)}
    for name in PRIORS[kind]:
        value = torch.randn(half, generator=random)
        tensors[name] = _laid_out(value, channels_last, device).to(parameter_dtype)

    def run(x: Tensor, **prior: Tensor) -> tuple[Tensor, Tensor]:
        kept, out, log_prob = functional.split(x, **prior)
        return functional.merge(kept, out), log_prob

    def exact(x: Tensor, mean: Tensor | None = None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = (torch.zeros(half).to(x) if t is None else t for t in (mean, log_std))
        normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        return x.clone(), normal.log_prob(x.chunk(2, 1)[1]).flatten(1).sum(1)

    return Call(tensors, run, exact, {"log_det": math.prod(half[1:])} | {f"gradient of {n}": 16 for n in tensors})
