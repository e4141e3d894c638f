"""What to train on, by name, and its batches. Nothing is downloaded."""

from __future__ import annotations

import pathlib

import torch
from torch import Tensor

from . import pictures, points
from .errors import CommandError
from .pictures import Pictures
from .targets import TARGETS, Target

PICTURES = ("digits", "fashion-mnist", "mnist", "cifar10")
NAMES = (*PICTURES, *points.NAMES, *TARGETS)

Data = Pictures | points.Points | Target


def has_pictures(name: str) -> bool:
    """Whether the data are pictures: those that have a name, or a folder's."""
    return name not in points.NAMES and name not in TARGETS


def load(name: str, data_dir: str | None = None) -> Data:
    """The data called `name`, one of `NAMES`, or the images in the folder `name`.

    Raises:
        CommandError: for pictures that are not on this machine, saying what to install.
    """
    in_files = name in PICTURES[1:]
    if data_dir is not None and not in_files:
        raise CommandError(f"--data-dir means nothing for {name}, but for {', '.join(PICTURES[1:])}; got {data_dir}")
    if name == "digits":
        return pictures.digits()
    if name in points.NAMES:
        return points.load(name)
    if name in TARGETS:
        return TARGETS[name]
    if not in_files:
        return pictures.folder(pathlib.Path(name))
    if data_dir is None and name != "fashion-mnist":
        raise CommandError(f"say with --data-dir where the files of {name} are")
    directory = pathlib.Path(data_dir or pictures.FASHION_DIR)
    return pictures.cifar(directory) if name == "cifar10" else pictures.idx(directory)


class Batches:
    """Endless batches of row numbers: every epoch a new order, the last incomplete batch of it left out.

    The order comes from a random stream of its own; `state_dict` holds that stream, the order and the place in it.
    """

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        if not 0 < batch <= rows:
            raise CommandError(f"--batch must be between 1 and the {rows} training pictures; got {batch}")
        self.rows = rows
        self.batch = batch
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0
        self.position = 0
        self.order = torch.randperm(rows, generator=self.generator)

    def next(self) -> Tensor:
        """The rows of the next batch."""
        if self.position + self.batch > self.rows:
            self.epoch += 1
            self.position = 0
            self.order = torch.randperm(self.rows, generator=self.generator)
        rows = self.order[self.position : self.position + self.batch]
        self.position += self.batch
        return rows

    def state_dict(self) -> dict:
        return {
            "generator": self.generator.get_state(),
            "order": self.order.clone(),
            "epoch": self.epoch,
            "position": self.position,
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        self.order = state["order"].clone()
        self.epoch = state["epoch"]
        self.position = state["position"]
