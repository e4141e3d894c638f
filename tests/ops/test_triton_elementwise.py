"""What elementwise ops compile for and launch in Triton, whoever the op is; their values are tested op by op."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels import backends

pytest.importorskip("triton", reason="no triton here")
from flowkernels.ops.dequantize import plan as dequantize
from flowkernels.ops.dequantize import triton
from flowkernels.ops.triton_launch import Kernel, launch


def both_ways(noise, x):
    """Forward and backward, and back again."""
    z, log_det = dequantize.forward(triton, launch, noise, x, 256, 1e-5)
    dequantize.backward(triton, launch, z, log_det, z, None, 256, 1e-5, (True, False))
    dequantize.quantize(triton, launch, z, 256, 1e-5)


@pytest.fixture
def launched(monkeypatch):
    """The kernel of every launch, in the place of the launch."""
    launches = []
    monkeypatch.setattr(Kernel, "__call__", lambda kernel, device, *tensors: launches.append(kernel))
    return launches


@pytest.mark.parametrize("features", [1, 33, 784, 16384])
def test_one_launch_each_way(launched, features):
    both_ways(torch.zeros(3, features), torch.zeros(3, features, dtype=torch.uint8))
    assert [kernel.arguments[-1] for kernel in launched] == [
        triton.dequantize_forward, triton.dequantize_backward, triton.quantize
    ]  # fmt: skip


def test_one_more_where_a_long_row_is_summed(launched):
    both_ways(torch.zeros(2, 20000), torch.zeros(2, 20000, dtype=torch.uint8))
    assert [kernel.kernel.__name__ for kernel in launched] == [
        "elementwise_kernel", "sum_partials_kernel", "elementwise_kernel", "elementwise_kernel"
    ]  # fmt: skip


@pytest.mark.parametrize("arrange", [lambda t: t, lambda t: t.t().contiguous().t()], ids=["rows", "columns"])
def test_kernels_are_not_compiled_anew_for_another_batch(launched, arrange):
    for rows in (48, 1008):
        both_ways(arrange(torch.zeros(rows, 6)), arrange(torch.zeros(rows, 6, dtype=torch.uint8)))
    for one, other in zip(launched[:3], launched[3:]):
        assert one.arguments[2:] == other.arguments[2:]
        assert kinds(one.arguments[1]) == kinds(other.arguments[1])


def kinds(value):
    """Constants as they are, and for other numbers that there is one."""
    if isinstance(value, tuple):
        return tuple(map(kinds, value))
    return "number" if isinstance(value, int) else getattr(value, "value", value)


@pytest.mark.skipif(not backends.interpreting(), reason="needs TRITON_INTERPRET=1 or a GPU")
def test_offsets_beyond_32_bits():
    """Columns 2^30 bytes apart, in memory of which no more than those bytes is touched."""
    x = torch.empty(2**31 + 8, dtype=torch.uint8).as_strided((2, 3), (5, 2**30))
    x.copy_(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    noise = torch.rand(2, 3)
    with fk.backend("triton"):
        z, log_det = fk.dequantize(x, noise)
        exact_z, exact_log_det = fk.dequantize(x.contiguous(), noise)
    assert torch.equal(z, exact_z)
    assert torch.equal(log_det, exact_log_det)
