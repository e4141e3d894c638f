"""What the launchers of dequantization and split do on the device: how many kernels, where, and how many bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import flowkernels as fk
from flowkernels.ops.cost import Cost
from flowkernels.ops.dequantize import cost as dequantize_cost
from flowkernels.ops.dequantize import plan as dequantize_plan
from flowkernels.ops.layout import accumulation_dtype
from flowkernels.ops.split import cost as split_cost
from flowkernels.ops.split import plan as split_plan

from .test_launches import SECTOR, launch_on

LEVELS = (256, 1e-5)


class Call(NamedTuple):
    """An operation, the tensors that need a gradient, and what cost.py says of both directions."""

    run: Callable[[], tuple[Tensor, ...]]
    leaves: tuple[Tensor, ...]
    forward: Cost
    backward: Cost


def row_grad(x: Tensor) -> Tensor:
    """The gradient of one number per row."""
    return torch.empty(x.shape[0], dtype=accumulation_dtype(x.dtype))


def dequantized(shape, dtype=torch.float32, x_dtype=torch.uint8, **layout) -> Call:
    """Of random bytes, or of whole numbers in the type in which is computed."""
    noise = torch.rand(shape).to(dtype).to(**layout).requires_grad_()
    x = torch.randint(256, shape).to(torch.uint8 if x_dtype == torch.uint8 else accumulation_dtype(dtype)).to(**layout)
    return Call(
        lambda: fk.dequantize(x, noise),
        (noise,),
        dequantize_cost.forward(noise, x, *LEVELS),
        dequantize_cost.backward(noise, row_grad(noise), noise, None, *LEVELS),
    )


def scored(shape, dtype=torch.float32, prior_dtype=None, prior=(True, True), **layout) -> Call:
    """Under a prior with a mean, with a deviation, with both, or with neither."""
    value = torch.randn(shape).to(dtype).to(**layout).requires_grad_()
    mean, log_std = (
        torch.randn(shape).to(prior_dtype or dtype).to(**layout).requires_grad_() if given else None for given in prior
    )
    return Call(
        lambda: (fk.log_normal(value, mean, log_std),),
        tuple(t for t in (value, mean, log_std) if t is not None),
        split_cost.forward(value, mean, log_std),
        split_cost.backward(row_grad(value), value, mean, log_std),
    )


def launches(module, call):
    """Those of a forward and of its backward pass."""
    emulation = module.emulation
    with fk.backend("cuda"):
        emulation.reset()
        outputs = call.run()
        forward = emulation.log()
        emulation.reset()
        torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
        return forward, emulation.log()


# Rows of whole sectors, so that the formulas hold to the byte: lanes, a warp, a block, pictures, chunks.
EXACT = [(64, 64), (64, 32), (5, 512), (7, 2048), (8, 6, 4, 4), (2, 65536)]
KINDS = {
    "bytes": dequantized,
    "numbers": lambda *a, **k: dequantized(*a, x_dtype=torch.float32, **k),
    "standard": lambda *a, **k: scored(*a, prior=(False, False), **k),
    "mean": lambda *a, **k: scored(*a, prior=(True, False), **k),
    "deviation": lambda *a, **k: scored(*a, prior=(False, True), **k),
    "both": scored,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", EXACT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sector_is_moved_once(emulated_cuda, kind, shape, dtype):
    call = KINDS[kind](shape, dtype)
    emulated_cuda.emulation.count_sectors(True)
    for log, expected in zip(launches(emulated_cuda, call), (call.forward, call.backward)):
        assert len(log) == expected.launches
        # Numbers of few rows fill their sectors in part only.
        rest = 2 * len(log) * SECTOR
        assert 0 <= sum(launch.loaded for launch in log) * SECTOR - expected.read <= rest
        assert 0 <= sum(launch.stored for launch in log) * SECTOR - expected.written <= rest


@pytest.mark.parametrize("levels", [256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_quantization_moves_every_sector_once(emulated_cuda, dtype, levels):
    emulated_cuda.emulation.count_sectors(True)
    for shape in EXACT:
        z = torch.randn(shape).to(dtype)
        emulated_cuda.emulation.reset()
        with fk.backend("cuda"):
            fk.quantize(z, levels=levels)
        (launch,), expected = emulated_cuda.emulation.log(), dequantize_cost.quantize(z, levels, 1e-5)
        assert (launch.loaded * SECTOR, launch.stored * SECTOR) == (expected.read, expected.written)


def test_bytes_of_an_element(emulated_cuda):
    """The floors that the design names, for float32 and bytes."""
    elements, rows = 64 * 1024, 64
    call = dequantized((rows, 1024))
    assert call.forward.bytes == 9 * elements + 4 * rows
    assert call.backward.bytes == 12 * elements + 4 * rows
    assert dequantize_cost.quantize(call.leaves[0], *LEVELS).bytes == 5 * elements
    assert scored((rows, 1024), prior=(False, False)).forward.bytes == 4 * elements + 4 * rows
    assert scored((rows, 1024)).forward.bytes == 12 * elements + 4 * rows
    assert scored((rows, 1024)).backward.bytes == 24 * elements + 4 * rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_warps_read_whole_sectors(emulated_cuda, kind, dtype):
    rows = 64
    call = KINDS[kind]((rows, 128), dtype)
    emulated_cuda.emulation.count_sectors(True)
    for (launch,) in launches(emulated_cuda, call):
        # Numbers of neighbouring rows lie in one sector, and the warp of each row uses it.
        assert launch.load_requests <= launch.loaded + rows
        assert launch.store_requests <= launch.stored + rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_alignment_cost_no_more_bytes(emulated_cuda, kind):
    call = KINDS[kind]((96, 7))
    emulated_cuda.emulation.count_sectors(True)
    for (launch,), expected in zip(launches(emulated_cuda, call), (call.forward, call.backward)):
        assert 0 <= launch.loaded * SECTOR - expected.read <= 4 * SECTOR
        assert 0 <= launch.stored * SECTOR - expected.written <= 4 * SECTOR


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_in_channels_last_are_one_run(emulated_cuda, kind):
    call = KINDS[kind]((2, 16, 4, 4), memory_format=torch.channels_last)
    emulated_cuda.emulation.count_sectors(True)
    for (launch,), expected in zip(launches(emulated_cuda, call), (call.forward, call.backward)):
        assert 0 <= launch.loaded * SECTOR - expected.read <= 2 * SECTOR
        assert 0 <= launch.stored * SECTOR - expected.written <= 2 * SECTOR
        assert launch.load_requests <= 1.05 * launch.loaded + 2


def test_a_half_is_read_where_it_lies(emulated_cuda):
    """What split scores is a view of every second run of channels."""
    x = torch.randn(16, 8, 4, 8, requires_grad=True)
    emulated_cuda.emulation.count_sectors(True)
    emulated_cuda.emulation.reset()
    with fk.backend("cuda"):
        fk.split(x)
    (launch,) = emulated_cuda.emulation.log()
    expected = split_cost.forward(x[:, 4:], None, None)
    assert (launch.loaded * SECTOR, launch.stored * SECTOR) == (expected.read, expected.written)


def test_what_needs_no_gradient_is_not_written_and_a_constant_one_is_read_once(emulated_cuda):
    value, mean, log_std = (torch.randn(64, 128) for _ in range(3))
    emulated_cuda.emulation.count_sectors(True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        leaves = [t.clone().requires_grad_(w) for t, w in zip((value, mean, log_std), wanted)]
        with fk.backend("cuda"):
            log_prob = fk.log_normal(*leaves)
            emulated_cuda.emulation.reset()
            log_prob.sum().backward()
        (launch,) = emulated_cuda.emulation.log()
        expected = split_cost.backward(torch.ones(()).expand(64), *leaves, wanted)
        assert launch.stored * SECTOR == expected.written == sum(wanted) * 4 * 64 * 128
        assert 0 <= launch.loaded * SECTOR - expected.read < SECTOR


# (rows, features) of float32 -> blocks of the launches.
BLOCKS = {
    (0, 8): [],
    (1, 1): [1],
    (20000, 2): [79],  # a thread a row
    (20000, 4): [79],
    (4096, 32): [128],  # 8 lanes
    (300, 128): [38],  # a warp
    (300, 512): [38],  # a warp, four times
    (300, 516): [300],  # a block
    (4, 16384): [4],
    (4, 32768): [16, 4],  # chunks, then their sums
    (2, 300001): [74, 2],
}


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
@pytest.mark.parametrize("kind", ["bytes", "both"])
def test_grid(emulated_cuda, kind, shape):
    call = KINDS[kind](shape)
    forward, backward = launches(emulated_cuda, call)
    assert [launch.blocks for launch in forward] == BLOCKS[shape]
    assert [launch.blocks for launch in backward] == BLOCKS[shape][:1]
    assert all(launch.threads == 256 for launch in forward + backward)
    assert (len(forward), len(backward)) == (call.forward.launches, call.backward.launches)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_elements_have_sums(emulated_cuda, kind):
    call = KINDS[kind]((3, 0))
    forward, backward = launches(emulated_cuda, call)
    assert (len(forward), len(backward)) == (call.forward.launches, call.backward.launches) == (1, 0)
    with fk.backend("cuda"):
        assert torch.equal(call.run()[-1], torch.zeros(3))
        assert fk.quantize(torch.randn(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(300, 5), (9, 1003), (2, 20001), (3, 4, 6, 8)], ids=str)
def test_order_of_threads_changes_nothing(emulated_cuda, kind, shape):
    call = KINDS[kind](shape)
    results = []
    for schedule in ("forward", "reverse", "shuffled", "shuffled"):
        emulated_cuda.emulation.schedule(schedule, len(results))
        with fk.backend("cuda"):
            outputs = call.run()
            loss = sum(t.square().sum() for t in outputs)
            results.append((*outputs, *torch.autograd.grad(loss, call.leaves)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_a_row_alone_is_summed_as_among_others(emulated_cuda):
    value = torch.randn(8, 65)[:, :64]  # its first row would be aligned
    with fk.backend("cuda"):
        whole, alone = fk.log_normal(value), [fk.log_normal(value[i : i + 1]) for i in range(8)]
    assert torch.equal(whole, torch.cat(alone))


def everything(module, device, stream):
    """Each kernel once, as if its tensors were on a device."""
    launch = launch_on(device, stream)
    noise, x = torch.rand(2, 20000), torch.randint(256, (2, 20000), dtype=torch.uint8)
    z, log_det = dequantize_plan.forward(module, launch, noise, x, *LEVELS)
    dequantize_plan.backward(module, launch, z, log_det, z, None, *LEVELS, (True, False))
    dequantize_plan.quantize(module, launch, z, *LEVELS)
    log_prob = split_plan.forward(module, launch, z, None, None)
    split_plan.backward(module, launch, log_prob, z, None, None, (True, False, False))


def test_launches_go_to_the_device_and_stream_given(emulated_cuda):
    threads = [threading.Thread(target=everything, args=(emulated_cuda, d, 0x1000 + d)) for d in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for device in (1, 2, 3):
        own = [launch for launch in emulated_cuda.emulation.log() if launch.device == device]
        dequantization = ["dequantize_forward", "sum_rows", "dequantize_backward", "quantize"]
        assert [launch.name for launch in own] == [*dequantization, "split_forward", "sum_rows", "split_backward"]
        assert {launch.stream for launch in own} == {0x1000 + device}
    assert emulated_cuda.emulation.current_device() == 0
