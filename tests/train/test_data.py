import gzip

import pytest
import torch

from flowkernels.train import data
from flowkernels.train.errors import CommandError


def idx(images):
    sizes = b"".join(n.to_bytes(4, "big") for n in images.shape)
    return bytes((0, 0, 8, images.dim())) + sizes + bytes(images.flatten().tolist())


def test_digits_are_split_for_good():
    pytest.importorskip("sklearn")
    one, other = data.load("digits"), data.load("digits")
    assert len(one.train) == 1498
    assert len(one.held_out) == 299
    assert torch.equal(one.held_out, other.held_out)
    assert one.train.dtype == torch.uint8
    assert one.train.max() == one.levels - 1 == 16
    assert one.features == 64
    with pytest.raises(CommandError, match="--data-dir means nothing"):
        data.load("digits", "/tmp")


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    images = {n: torch.randint(256, (r, 28, 28)) for n, r in (("train", 5), ("t10k", 3))}
    for name, values in images.items():
        path = tmp_path / f"{name}-images-idx3-ubyte"
        content = idx(values)
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    pictures = data.load("fashion-mnist", str(tmp_path))
    assert torch.equal(pictures.train, images["train"].flatten(1).to(torch.uint8))
    assert torch.equal(pictures.held_out, images["t10k"].flatten(1).to(torch.uint8))
    assert pictures.shape == (1, 28, 28)
    assert pictures.levels == 256


def test_missing_files_name_the_package(tmp_path):
    with pytest.raises(CommandError, match=f"{tmp_path}: install Debian's package dataset-fashion-mnist"):
        data.load("fashion-mnist", str(tmp_path))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"hello, world")
    with pytest.raises(CommandError, match="train-images-idx3-ubyte is not an IDX file"):
        data.read_idx(tmp_path, path.name)
    path.write_bytes(idx(torch.zeros(2, 3, 4, dtype=torch.uint8))[:-1])
    with pytest.raises(CommandError, match="should hold 24 pixels; it holds 23"):
        data.read_idx(tmp_path, path.name)
    path.unlink()
    (tmp_path / f"{path.name}.gz").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(CommandError, match="cannot be read"):
        data.read_idx(tmp_path, path.name)


def test_an_epoch_is_every_row_once():
    batches = data.Batches(20, 5, seed=0)
    epochs = [torch.cat([batches.next() for _ in range(4)]) for _ in range(2)]
    assert all(torch.equal(e.sort().values, torch.arange(20)) for e in epochs)
    assert not torch.equal(*epochs)
    assert batches.epoch == 1


def test_batches_go_on_where_they_were_saved():
    one = data.Batches(20, 6, seed=1)
    for _ in range(7):
        one.next()
    other = data.Batches(20, 6, seed=2)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(one.next(), other.next()) for _ in range(10))


@pytest.mark.parametrize("batch", [0, 21])
def test_a_batch_that_does_not_fit_is_named(batch):
    with pytest.raises(CommandError, match=f"got {batch}"):
        data.Batches(20, batch, seed=0)
