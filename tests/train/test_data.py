import pytest
import torch

from flowkernels.train import data
from flowkernels.train.errors import CommandError


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_data_without_a_package_need_a_directory(name):
    with pytest.raises(CommandError, match=f"--data-dir where the files of {name} are"):
        data.load(name)


def test_a_directory_means_nothing_for_data_that_are_not_in_files():
    with pytest.raises(CommandError, match="--data-dir means nothing for moons"):
        data.load("moons", "/tmp")


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
