"""Pictures and points to train on. Nothing is downloaded."""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
import zlib

import torch
from torch import Tensor

from . import points
from .errors import CommandError
from .targets import TARGETS, Target

FASHION_DIR = "/usr/share/datasets/fashion-mnist"  # of Debian's package

PICTURES = ("digits", "fashion-mnist", "mnist")
NAMES = (*PICTURES, *points.NAMES, *TARGETS)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as rows of whole numbers 0, ..., levels - 1, split for good into training and held-out ones.

    `train` and `held_out` are uint8 of shape (N, D); `shape` is (channels, height, width), whose product is D.
    """

    train: Tensor
    held_out: Tensor
    shape: tuple[int, int, int]
    levels: int

    @property
    def features(self) -> int:
        """The number D of pixels."""
        return math.prod(self.shape)


Data = Pictures | points.Points | Target


def load(name: str, data_dir: str | None = None) -> Data:
    """The data called `name`, one of `NAMES`.

    Raises:
        CommandError: for pictures that are not on this machine, saying what to install.
    """
    if name not in PICTURES[1:] and data_dir is not None:
        raise CommandError(f"--data-dir means nothing for {name}, which is not in files; got {data_dir}")
    if name == "digits":
        return _digits()
    if name in points.NAMES:
        return points.load(name)
    if name in TARGETS:
        return TARGETS[name]
    if name == "mnist" and data_dir is None:
        raise CommandError("say with --data-dir where the IDX files of MNIST are")
    return _idx_pictures(pathlib.Path(data_dir or FASHION_DIR))


def _digits() -> Pictures:
    """scikit-learn's 1797 handwritten digits, 8x8, 17 levels; every sixth is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        message = "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        raise CommandError(message) from None
    images = torch.from_numpy(load_digits().data).to(torch.uint8)
    held_out = torch.arange(len(images)) % 6 == 5
    return Pictures(images[~held_out], images[held_out], (1, 8, 8), 17)


def _idx_pictures(directory: pathlib.Path) -> Pictures:
    train = read_idx(directory, "train-images-idx3-ubyte")
    held_out = read_idx(directory, "t10k-images-idx3-ubyte")
    return Pictures(train.flatten(1), held_out.flatten(1), (1, *train.shape[1:]), 256)


def read_idx(directory: pathlib.Path, name: str) -> Tensor:
    """The images in an IDX file, gzipped or not, as uint8 of shape (N, height, width).

    Raises:
        CommandError: if there is no such file, or it holds something else.
    """
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return _parse_idx(path)
    raise CommandError(
        f"no {name} or {name}.gz in {directory}: install Debian's package dataset-fashion-mnist"
        " (apt-get install dataset-fashion-mnist), or say with --data-dir where the files are"
    )


def _parse_idx(path: pathlib.Path) -> Tensor:
    """IDX: bytes 0, 0, type (8 = unsigned byte), number of dimensions; big-endian 32-bit sizes; the values."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"{path} cannot be read: {error}") from None
    if content[:4] != bytes((0, 0, 8, 3)):
        raise CommandError(f"{path} is not an IDX file of images: it starts with {content[:4].hex()}, not 00000803")
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in (4, 8, 12)]
    if len(content) != 16 + math.prod(sizes):
        raise CommandError(f"{path} should hold {math.prod(sizes)} pixels; it holds {len(content) - 16}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=16).reshape(sizes)


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
