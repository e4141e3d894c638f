"""Dequantization and split's log-density on the device: the cases of tests/ops, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk

from ..ops import test_dequantize, test_split
from ..ops.affine_cases import DTYPES, cast, strided
from .calls import same

pytestmark = pytest.mark.gpu

RUNS = 30
# A thread, lanes, a warp and a block for a row; chunks; pictures, whose sizes allow wide accesses or do not.
SHAPES = [
    *((4000, 2), (513, 31), (300, 512), (40, 2048), (7, 20001), (3, 2**20), (64, 3, 32, 32), (33, 3, 7, 9)),
    *test_split.SHAPES,
]


@pytest.fixture(autouse=True)
def _on_the_device(device):
    """Cases are made on the default device."""
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("how", ["contiguous", "offset", "transposed"])
@pytest.mark.parametrize("dtype", test_dequantize.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantization(backend, shape, dtype, how):
    for x_dtype in (torch.uint8, torch.float32):
        x, noise = torch.randint(256, shape).to(x_dtype), cast(test_dequantize.noise_for(shape), dtype)
        test_dequantize.compare(backend, strided(x, how), strided(noise, how))


@pytest.mark.parametrize("kind", test_split.PRIORS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_density(backend, shape, dtypes, kind):
    tensors = {name: cast(t, dtypes[1]) for name, t in test_split.prior(kind, shape).items()}
    tensors = {"value": cast(torch.randn(shape), dtypes[0]), **tensors}
    for how in ("contiguous", "offset"):
        test_split.compare(backend, {name: strided(t, how) for name, t in tensors.items()})


@pytest.mark.parametrize("layout", ["contiguous", "offset", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_number_comes_back(backend, dtype, layout):
    test_dequantize.test_every_number_comes_back(backend, dtype, layout)


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_same_bits_every_time_and_whatever_the_batch(backend, shape):
    x, noise = torch.randint(256, shape, dtype=torch.uint8), torch.rand(shape).requires_grad_()

    def both_ways():
        z, log_det = fk.dequantize(x, noise)
        return z, log_det, fk.log_normal(z), *torch.autograd.grad(z.square().sum() + log_det.sum(), noise)

    with fk.backend(backend):
        first = both_ways()
        assert all(t.isfinite().all() for t in first)
        for number in range(RUNS):
            assert same(both_ways(), first), f"run {number} differs"
        z, log_det = fk.dequantize(x[:3], noise[:3])
    assert same((z, log_det), [t[:3] for t in first[:2]])
