"""What a run is, and the model that it trains: all that a checkpoint needs beside tensors."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import torch
from torch import nn

from .. import models
from ..bases import DiagonalNormal
from ..flows import Flow
from ..nn import Dequantize, Permute, Planar, Radial, checkerboard_mask
from .data import PICTURES, has_pictures
from .errors import CommandError
from .targets import TARGETS

DTYPES = {"float32": torch.float32, "float64": torch.float64}
BINARIZE = ("sample", "threshold")
LAYERS = {"planar": Planar, "radial": Radial}
# The boxes of splines: logits of pixels reach 12, points in the plane 4.
PIXEL_BOUND, POINT_BOUND = 12.0, 4.0
COUPLINGS = ("realnvp", "nsf")

_COMMON: dict[str, Any] = {"batch": 128, "lr": 1e-3, "seed": 0, "dtype": "float32", "clip": 0.0, "amp": False}
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
# Of the UvA tutorial: the rate falls by a hundredth at each epoch, gradients are cut to length 1.
_IMAGES: dict[str, Any] = {**_COMMON, "epoch_decay": 0.99, "clip": 1.0, "decay": 0, "held_out": 1000}
# The settings of each flow that a checkpoint decides, with their defaults; None follows from the steps.
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {**_COMMON, "transforms": 8, "hidden": (128, 128)} for name in COUPLINGS},
    "planar": {**_COMMON, **_STACK},
    "radial": {**_COMMON, **_STACK},
    "planar-vae": {**_COMMON, **_AUTOENCODER},
    "radial-vae": {**_COMMON, **_AUTOENCODER},
    "uva-simple": _IMAGES,
    "uva-vardeq": _IMAGES,
    "uva-multiscale": _IMAGES,
    "glow": {**_IMAGES, "scales": 2, "transforms": 8, "hidden": (128,)},
}
IMAGE_FLOWS = tuple(name for name, known in SETTINGS.items() if "held_out" in known)  # over (B, C, H, W), not rows
STEPS = {
    **dict.fromkeys(COUPLINGS, 1000),
    **dict.fromkeys(("planar", "radial"), 4000),
    **dict.fromkeys(("planar-vae", "radial-vae"), 5000),
    **dict.fromkeys(IMAGE_FLOWS, 1000),
}


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
    clip: float = 0.0
    amp: bool = False
    transforms: int | None = None
    hidden: tuple[int, ...] | None = None
    scales: int | None = None
    depth: int | None = None
    latent: int | None = None
    binarize: str | None = None
    anneal: int | None = None
    decay: int | None = None
    epoch_decay: float | None = None
    held_out: int | None = None

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
        return f"{self.flow}{depth} on {pathlib.Path(self.data).name}"

    @property
    def of_images(self) -> bool:
        """Whether the model takes pictures as (B, C, H, W) rather than rows."""
        return self.flow in IMAGE_FLOWS


def settings(data: str, flow: str) -> dict[str, Any]:
    """The settings that mean something for a flow on these data, with their defaults.

    Raises:
        CommandError: for a flow that these data cannot train.
    """
    if (flow.endswith("-vae") or flow in IMAGE_FLOWS) and not has_pictures(data):
        raise CommandError(f"--flow {flow} needs pictures ({', '.join(PICTURES)}, or a folder); got --data {data}")
    return {**SETTINGS[flow], **({"anneal": None} if data in TARGETS else {})}


def build_model(config: Config) -> nn.Module:
    """The model of a run: a `Flow`, or a `VAE` for the flows whose name says so.

    Raises:
        CommandError: for pictures of a size that the flow cannot take.
    """
    try:
        return _build(config)
    except ValueError as error:
        raise CommandError(f"--flow {config.flow} cannot be built for {config.data}: {error}") from None


def _build(config: Config) -> nn.Module:
    features = math.prod(config.shape)
    if config.flow.endswith("-vae"):
        kind = config.flow.removesuffix("-vae")
        return models.vae(features, latent=config.latent, hidden=config.hidden, flow=kind, depth=config.depth)
    if config.flow.startswith("uva-"):
        return models.uva(config.flow.removeprefix("uva-"), image_shape=config.shape, levels=config.levels)
    if config.flow == "glow":
        (hidden,) = config.hidden or ()
        return models.glow(
            config.shape, scales=config.scales, steps=config.transforms, hidden=hidden, levels=config.levels
        )
    if config.flow in COUPLINGS:
        couplings = _couplings(config, features)
        return couplings if config.levels == 0 else _checkerboard(config, couplings)
    # In closed form is the direction that training needs: from latents if it samples, else from data.
    layer = LAYERS[config.flow](features, config.depth, generative=config.data in TARGETS)
    before = [Dequantize(config.levels)] if config.levels else []
    return Flow([*before, layer], DiagonalNormal(features))


def _couplings(config: Config, features: int) -> Flow:
    if config.flow == "realnvp":
        return models.realnvp(features, transforms=config.transforms, hidden=config.hidden)
    bound = PIXEL_BOUND if config.levels else POINT_BOUND
    return models.nsf(features, transforms=config.transforms, hidden=config.hidden, bound=bound)


def _checkerboard(config: Config, couplings: Flow) -> Flow:
    """Couplings over pictures as rows of pixels (B, D).

    The pixels are put in an order in which the colours of the checkerboard are the two halves: couplings that keep
    halves in turn are then checkerboard couplings without the cost of a mask.
    """
    odd = checkerboard_mask(*config.shape[1:]).expand(config.shape).flatten()
    order = odd.to(torch.uint8).argsort(stable=True)
    return Flow([Dequantize(config.levels), Permute(len(odd), order), *couplings.layers], couplings.base)
