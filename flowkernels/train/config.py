"""What a run is, and the model that it trains: all that a checkpoint needs beside tensors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from .. import models
from ..bases import DiagonalNormal
from ..flows import Flow
from ..nn import Dequantize, Permute, Planar, Radial, checkerboard_mask
from .data import PICTURES
from .errors import CommandError
from .targets import TARGETS

DTYPES = {"float32": torch.float32, "float64": torch.float64}
BINARIZE = ("sample", "threshold")
LAYERS = {"planar": Planar, "radial": Radial}

_COMMON: dict[str, Any] = {"batch": 128, "lr": 1e-3, "seed": 0, "dtype": "float32"}
_STACK = {"depth": 8, "batch": 512, "lr": 5e-3, "decay": None}
_AUTOENCODER = {
    "depth": 8,
    "lr": 3e-3,
    "hidden": (200,),
    "latent": 4,
    "binarize": "sample",
    "anneal": None,
    "decay": None,
}
# The settings of each flow that a checkpoint decides, with their defaults; None follows from the steps.
SETTINGS: dict[str, dict[str, Any]] = {
    "realnvp": {**_COMMON, "transforms": 8, "hidden": (128, 128)},
    "planar": {**_COMMON, **_STACK},
    "radial": {**_COMMON, **_STACK},
    "planar-vae": {**_COMMON, **_AUTOENCODER},
    "radial-vae": {**_COMMON, **_AUTOENCODER},
}
STEPS = {"realnvp": 1000, "planar": 4000, "radial": 4000, "planar-vae": 5000, "radial-vae": 5000}


def annealing(flow: str, steps: int) -> int:
    """The steps over which beta rises by 1, unless told.

    For an autoencoder the paper's share, 10,000 of 500,000: a longer rise leaves latents that say nothing of the data.
    For a fit to a density half of the steps, in which samples still cross from mode to mode.
    """
    return steps // 50 if flow.endswith("-vae") else steps // 2


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that decide the result of a run; None for one that means nothing for the flow or the data.

    Plain values only: `torch.load(weights_only=True)` reads them.
    """

    data: str
    flow: str
    shape: tuple[int, ...]
    levels: int
    batch: int
    lr: float
    seed: int
    dtype: str
    transforms: int | None = None
    hidden: tuple[int, ...] | None = None
    depth: int | None = None
    latent: int | None = None
    binarize: str | None = None
    anneal: int | None = None
    decay: int | None = None

    def plain(self) -> dict:
        """For a checkpoint."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_plain(cls, values: dict) -> Config:
        """What `plain` gave."""
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**arguments)

    @property
    def title(self) -> str:
        """The run in a few words."""
        depth = "" if self.depth is None else f" (K = {self.depth})"
        return f"{self.flow}{depth} on {self.data}"


def settings(data: str, flow: str) -> dict[str, Any]:
    """The settings that mean something for a flow on these data, with their defaults.

    Raises:
        CommandError: for a flow that these data cannot train.
    """
    if flow.endswith("-vae") and data not in PICTURES:
        raise CommandError(f"--flow {flow} needs pictures ({', '.join(PICTURES)}); got --data {data}")
    return {**SETTINGS[flow], **({"anneal": None} if data in TARGETS else {})}


def build_model(config: Config) -> nn.Module:
    """The model of a run: a `Flow`, or a `VAE` for the flows whose name says so."""
    features = math.prod(config.shape)
    if config.flow.endswith("-vae"):
        kind = config.flow.removesuffix("-vae")
        return models.vae(features, latent=config.latent, hidden=config.hidden, flow=kind, depth=config.depth)
    if config.flow == "realnvp":
        couplings = models.realnvp(features, transforms=config.transforms, hidden=config.hidden)
        return couplings if config.levels == 0 else _checkerboard(config, couplings)
    # In closed form is the direction that training needs: from latents if it samples, else from data.
    layer = LAYERS[config.flow](features, config.depth, generative=config.data in TARGETS)
    before = [Dequantize(config.levels)] if config.levels else []
    return Flow([*before, layer], DiagonalNormal(features))


def _checkerboard(config: Config, couplings: Flow) -> Flow:
    """A RealNVP over pictures as rows of pixels (B, D).

    The pixels are put in an order in which the colours of the checkerboard are the two halves: RealNVP's couplings,
    which keep halves in turn, are then checkerboard couplings without the cost of a mask.
    """
    odd = checkerboard_mask(*config.shape[1:]).expand(config.shape).flatten()
    order = odd.to(torch.uint8).argsort(stable=True)
    return Flow([Dequantize(config.levels), Permute(len(odd), order), *couplings.layers], couplings.base)
