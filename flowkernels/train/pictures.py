"""Pictures from files: IDX, the batches of CIFAR-10, and folders of images. Nothing is downloaded or executed."""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
import pickle
import zlib
from typing import Any

import torch
from torch import Tensor

from .errors import CommandError

FASHION_DIR = "/usr/share/datasets/fashion-mnist"  # of Debian's package
HELD_OUT_EVERY = 6  # of data that come without a split
CIFAR_SHAPE = (3, 32, 32)
READABLE = (".png", ".jpg", ".jpeg", ".npy")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of whole numbers 0, ..., levels - 1, split for good into training and held-out ones.

    `train` and `held_out` are uint8 of shape (N, channels, height, width).
    """

    train: Tensor
    held_out: Tensor
    levels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return tuple(self.train.shape[1:])


def _split(images: Tensor, levels: int) -> Pictures:
    held_out = torch.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Pictures(images[~held_out], images[held_out], levels)


def digits() -> Pictures:
    """scikit-learn's 1797 handwritten digits, 8x8, 17 levels; every sixth is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        message = "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        raise CommandError(message) from None
    return _split(torch.from_numpy(load_digits().images).to(torch.uint8)[:, None], 17)


def idx(directory: pathlib.Path) -> Pictures:
    """MNIST or Fashion-MNIST, the test images held out."""
    train = read_idx(directory, "train-images-idx3-ubyte")
    held_out = read_idx(directory, "t10k-images-idx3-ubyte")
    if train.shape[1:] != held_out.shape[1:]:
        sizes = " and ".join("x".join(map(str, images.shape[1:])) for images in (train, held_out))
        raise CommandError(f"the training and test images in {directory} differ in size: {sizes}")
    return Pictures(train[:, None], held_out[:, None], 256)


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


def cifar(directory: pathlib.Path) -> Pictures:
    """CIFAR-10 in its version for C (data_batch_1.bin) or for Python (data_batch_1), test_batch held out.

    Raises:
        CommandError: if a file is missing, or holds something else.
    """
    for suffix, read in ((".bin", _cifar_records), ("", _cifar_pickle)):
        if (directory / f"data_batch_1{suffix}").is_file():
            names = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
            batches = [read(_present(directory / name)) for name in names]
            return Pictures(torch.cat(batches[:-1]), batches[-1], 256)
    raise CommandError(
        f"no data_batch_1 or data_batch_1.bin in {directory}: unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
        " from https://www.cs.toronto.edu/~kriz/cifar.html and say with --data-dir where the files are"
    )


def _present(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise CommandError(f"{path} is missing: CIFAR-10 is data_batch_1 to data_batch_5 and test_batch")
    return path


def _cifar_records(path: pathlib.Path) -> Tensor:
    """Records of a label and the pixels of a picture, a byte each."""
    return _cifar_images(path, path.read_bytes(), 1 + math.prod(CIFAR_SHAPE))


def _cifar_images(path: pathlib.Path, content: bytes, size: int) -> Tensor:
    if not content or len(content) % size:
        raise CommandError(f"{path} should hold records of {size} bytes; it holds {len(content)} bytes")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, size)
    return records[:, size - math.prod(CIFAR_SHAPE) :].reshape(-1, *CIFAR_SHAPE).contiguous()


def _cifar_pickle(path: pathlib.Path) -> Tensor:
    """A dictionary whose b"data" is an array of bytes, a row for each picture."""
    try:
        with open(path, "rb") as file:
            batch = _Records(file, encoding="bytes").load()
        array = batch.get(b"data", batch.get("data"))
        _, shape, dtype, by_columns, content = array.state
        kind = dtype.arguments[0]
    except CommandError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise CommandError(f"{path} cannot be read as a batch of CIFAR-10: {error}") from None
    size = math.prod(CIFAR_SHAPE)
    if kind not in ("u1", b"u1") or by_columns or shape != (len(content) // size, size):
        raise CommandError(f"{path} should hold rows of {size} bytes; it holds type {kind} of shape {shape}")
    return _cifar_images(path, content, size)


class _Record:
    """Stands for an object in a pickle: what it was to be made with, and the state it was to be given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Records(pickle.Unpickler):
    """Reads the pickle of a numpy array without numpy and without calling anything that the pickle names."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in self.ALLOWED:
            raise CommandError(f"a batch of CIFAR-10 has no use for {module}.{name}: refusing to read the pickle")
        return _Record


def folder(directory: pathlib.Path) -> Pictures:
    """The images in a folder and those below it, in the order of their names; every sixth is held out.

    Raises:
        CommandError: for images that differ in size or channels, for one that cannot be read, or too few.
    """
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in READABLE)
    if len(paths) < HELD_OUT_EVERY:
        raise CommandError(f"{directory} should hold at least {HELD_OUT_EVERY} images ({', '.join(READABLE)});"
                           f" it holds {len(paths)}")  # fmt: skip
    images = [_image(path) for path in paths]
    for path, image in zip(paths, images):
        if image.shape != images[0].shape:
            raise CommandError(f"images must be equal in size: {paths[0]} is {_size(images[0])}, {path} {_size(image)}")
    return _split(torch.stack(images), 256)


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{width}x{height} with {channels} channel{'s' * (channels > 1)}"


def _image(path: pathlib.Path) -> Tensor:
    """One image as uint8 of shape (channels, height, width): grey, or red, green and blue."""
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _decoded(path)
    except (OSError, ValueError, EOFError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
        raise CommandError(f"{path} cannot be read as an image: {error}") from None
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise CommandError(
            f"{path} should hold bytes of shape (height, width), (height, width, 1) or (height, width, 3);"
            f" it holds {array.dtype} of shape {array.shape}"
        )
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)


def _decoded(path: pathlib.Path) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise CommandError(f"{path} needs Pillow, which is not installed: pip install pillow") from None
    import numpy as np

    with Image.open(path) as image:
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))
