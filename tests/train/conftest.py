import argparse
import sys

import pytest
import torch

from flowkernels import train

TINY = ["--transforms", "2", "--hidden", "16", "--batch", "64"]

# What a child process runs: the command without the command line program, which is tested elsewhere.
PROGRAM = (
    "import argparse, sys; from flowkernels import train; parser = argparse.ArgumentParser();"
    " train.add_arguments(parser); sys.exit(train.run(parser.parse_args()))"
)


def arguments(command, words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def run_train():
    """Run `flowkernels train` with a tiny flow in this process."""
    return lambda *words: train.run(arguments(train, [*words, *TINY]))


@pytest.fixture
def run_words():
    """Run `flowkernels train` with these options and no others in this process."""
    return lambda *words: train.run(arguments(train, words))


@pytest.fixture
def run_sample():
    return lambda *words: train.sample.run(arguments(train.sample, words))


@pytest.fixture
def train_process():
    """The command line of a child process that trains the same tiny flow."""
    return lambda *words: [sys.executable, "-c", PROGRAM, *map(str, words), *TINY]


@pytest.fixture
def assert_same_state():
    """Two checkpoints hold the same, bit for bit."""

    def same(a, b, path="checkpoint"):
        assert type(a) is type(b), path
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), path
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), path
            for key in a:
                same(a[key], b[key], f"{path}[{key!r}]")
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), path
            for i, (x, y) in enumerate(zip(a, b)):
                same(x, y, f"{path}[{i}]")
        else:
            assert a == b, path

    return same


@pytest.fixture
def one_thread():
    """As the child processes, which are started with OMP_NUM_THREADS=1: bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {"OMP_NUM_THREADS": "1"}
    torch.set_num_threads(before)
