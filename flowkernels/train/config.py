"""What a run is, and the flow that it trains: all that a checkpoint needs beside tensors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from .. import models
from ..flows import Flow
from ..nn import Dequantize, Permute, checkerboard_mask

FLOWS = ("realnvp",)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that decide the result of a run. Plain values only: `torch.load(weights_only=True)` reads them."""

    data: str
    flow: str
    shape: tuple[int, int, int]
    levels: int
    transforms: int
    hidden: tuple[int, ...]
    batch: int
    lr: float
    seed: int
    dtype: str

    def plain(self) -> dict:
        """For a checkpoint."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_plain(cls, values: dict) -> Config:
        """What `plain` gave."""
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**arguments)


def build_flow(config: Config) -> Flow:
    """The flow of a run, over pictures as rows of pixels (B, D).

    The pixels are put in an order in which the colours of the checkerboard are the two halves: RealNVP's couplings,
    which keep halves in turn, are then checkerboard couplings without the cost of a mask.
    """
    features = math.prod(config.shape)
    odd = checkerboard_mask(*config.shape[1:]).expand(config.shape).flatten()
    order = odd.to(torch.uint8).argsort(stable=True)
    couplings = models.realnvp(features, transforms=config.transforms, hidden=config.hidden)
    return Flow([Dequantize(config.levels), Permute(features, order), *couplings.layers], couplings.base)
