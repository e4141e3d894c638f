"""What the launchers do on the device: how many kernels, where, with how many blocks, and how many bytes they move."""

from __future__ import annotations

import threading

import pytest
import torch

import flowkernels as fk
from flowkernels.ops.affine_coupling import cost, plan

SECTOR = 32
TANH = fk.AffineForm("tanh", bound=2.0)
LEARNED = fk.AffineForm("tanh")


def call(form, shape, passive=None, dtype=torch.float32, raw_dtype=None, mask=None, learned=False, **layout):
    """Inputs of one call that need gradients, and what else `fk.affine_coupling` takes."""
    active = (shape[0], shape[1] - abs(passive or 0), *shape[2:])
    raw_shape = (active[0], 2 * active[1], *active[2:])
    if form.scale == "additive":
        raw_shape = active
    x = torch.randn(shape, dtype=dtype).to(**layout).requires_grad_()
    raw = torch.randn(raw_shape, dtype=raw_dtype or dtype).to(**layout).requires_grad_()
    bound = (1 + torch.rand(active[1])).requires_grad_() if learned else None
    return (x, raw), {"form": form, "passive": passive, "mask": mask, "bound": bound}


def run(module, tensors, options):
    """The launches of a forward and of its backward pass."""
    emulation = module.emulation
    with fk.backend("cuda"):
        emulation.reset()
        y, log_det = fk.affine_coupling(*tensors, **options)
        forward = emulation.log()
        emulation.reset()
        outputs = [t for t in (y, log_det) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
        return forward, emulation.log()


def costs(tensors, options):
    """What cost.py says of the same."""
    x, raw = tensors
    rest = (options["mask"], options["bound"], options["form"], options["passive"] or 0, False)
    learned = options["bound"] is not None
    forward = cost.forward(x, raw, None, *rest)
    grad_log_det = torch.empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return forward, cost.backward(x, grad_log_det, x, raw, None, *rest, (True, True, learned))


# (form, shape, passive) with rows of whole sectors, so that the formulas hold to the byte.
EXACT = [
    (TANH, (64, 64), 32),
    (TANH, (64, 32), 16),
    (TANH, (7, 1024), 0),
    (TANH, (3, 48), -16),
    (TANH, (8, 6, 4, 4), 3),
    (TANH, (2, 65536), 32768),
    (fk.AffineForm("additive"), (16, 64), 32),
    (fk.AffineForm("sigmoid", order="shift_first"), (5, 4096), 0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("form, shape, passive", EXACT, ids=str)
def test_every_sector_is_moved_once(emulated_cuda, form, shape, passive, dtype):
    tensors, options = call(form, shape, passive, dtype)
    emulated_cuda.emulation.count_sectors(True)
    for launches, expected in zip(run(emulated_cuda, tensors, options), costs(tensors, options)):
        assert len(launches) == expected.launches
        # Log-determinants of few rows fill their sectors in part only.
        rest = 2 * len(launches) * SECTOR
        assert 0 <= sum(launch.loaded for launch in launches) * SECTOR - expected.read <= rest
        assert 0 <= sum(launch.stored for launch in launches) * SECTOR - expected.written <= rest


@pytest.mark.parametrize(
    "dtype, raw_dtype",
    [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.float32, torch.bfloat16)],
)
def test_warps_read_whole_sectors(emulated_cuda, dtype, raw_dtype):
    tensors, options = call(TANH, (64, 128), 64, dtype, raw_dtype)
    emulated_cuda.emulation.count_sectors(True)
    for (launch,) in run(emulated_cuda, tensors, options):
        # Log-determinants of neighbouring rows lie in one sector, and several warps use it.
        assert launch.load_requests <= 1.05 * launch.loaded
        assert launch.store_requests <= 1.05 * launch.stored


@pytest.mark.parametrize("layout", ["interleaved_shift_scale", "scale_shift"])
def test_rows_without_alignment_cost_no_more_bytes(emulated_cuda, layout):
    tensors, options = call(fk.AffineForm("exp", layout=layout), (96, 6), 3)
    emulated_cuda.emulation.count_sectors(True)
    forward, backward = run(emulated_cuda, tensors, options)
    halves = sum(t.numel() * t.element_size() // 2 for t in tensors)  # not needed, but in the same sectors
    for (launch,), expected in zip((forward, backward), costs(tensors, options)):
        assert launch.loaded * SECTOR <= expected.read + halves + 4 * SECTOR
        assert launch.stored * SECTOR <= expected.written + 4 * SECTOR


def test_channels_last_halves(emulated_cuda):
    """Each pixel holds both halves: x and y whole, raw whole, nothing twice."""
    tensors, options = call(TANH, (2, 16, 4, 4), 8, memory_format=torch.channels_last)
    emulated_cuda.emulation.count_sectors(True)
    for (launch,), expected in zip(run(emulated_cuda, tensors, options), costs(tensors, options)):
        assert 0 <= launch.loaded * SECTOR - expected.read <= 2 * SECTOR
        assert 0 <= launch.stored * SECTOR - expected.written <= 2 * SECTOR


# (rows, features) of float32, half of them active -> blocks of the launches.
BLOCKS = {
    (0, 8): [],
    (1, 2): [1],
    (20000, 2): [79],  # a thread a row
    (20000, 8): [79],
    (4096, 64): [128],  # 8 lanes
    (300, 256): [38],  # a warp
    (300, 1024): [38],  # a warp, four times
    (300, 1032): [300],  # a block
    (4, 32768): [4],
    (4, 65536): [16, 4],  # chunks, then their sums
    (2, 600002): [74, 2],
}


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_grid(emulated_cuda, shape):
    tensors, options = call(TANH, shape, shape[1] // 2)
    forward, backward = run(emulated_cuda, tensors, options)
    assert [launch.blocks for launch in forward] == BLOCKS[shape]
    assert [launch.blocks for launch in backward] == BLOCKS[shape][:1]
    assert all(launch.threads == 256 for launch in forward + backward)
    assert [len(forward), len(backward)] == [expected.launches for expected in costs(tensors, options)]


@pytest.mark.parametrize(
    "shape, passive, launches",
    [((100, 6), 3, 1), ((5000, 6), 3, 2), ((4, 5, 8, 8), 2, 1), ((40, 5, 8, 8), 2, 2), ((0, 6), 3, 1), ((7, 1), 0, 1)],
    ids=str,
)
def test_gradient_of_the_bound_costs_at_most_one_launch_more(emulated_cuda, shape, passive, launches):
    tensors, options = call(LEARNED, shape, passive, learned=True)
    _, backward = run(emulated_cuda, tensors, options)
    assert len(backward) == launches


def test_nothing_active_fills_log_det(emulated_cuda):
    for shape, passive in (((3, 0), 0), ((3, 5), 5)):
        (x, raw), options = call(TANH, shape, passive)
        with fk.backend("cuda"):
            y, log_det = fk.affine_coupling(x, raw, **options)
        assert torch.equal(y, x)
        assert torch.equal(log_det, torch.zeros(3))


@pytest.mark.parametrize(
    "shape, learned", [((9, 1003), False), ((40, 7, 9), True), ((300, 5), True), ((2, 20001), False)]
)
def test_order_of_threads_changes_nothing(emulated_cuda, shape, learned):
    tensors, options = call(LEARNED if learned else TANH, shape, 2, learned=learned)
    leaves = [t for t in (*tensors, options["bound"]) if t is not None]
    results = []
    for schedule in ("forward", "reverse", "shuffled", "shuffled"):
        emulated_cuda.emulation.schedule(schedule, len(results))
        with fk.backend("cuda"):
            y, log_det = fk.affine_coupling(*tensors, **options)
            results.append((y, log_det, *torch.autograd.grad((y * y).sum() + log_det.sum(), leaves)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def launch_on(device, stream):
    """A launcher that pretends its tensors to be on a device."""

    def launch(planned, _, *tensors):
        workspace = torch.empty(planned.workspace, dtype=torch.uint8)
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        planned(*addresses, workspace.data_ptr(), device, stream)

    return launch


def both_ways(module, device, stream):
    x, raw = torch.randn(2, 20000), torch.randn(2, 40000)
    rest = (None, None, fk.AffineForm(), 0, False)
    y, _ = plan.forward(module, launch_on(device, stream), x, raw, None, *rest)
    plan.backward(
        module, launch_on(device, stream), y, torch.ones(2), x, raw, None, *rest, (True, True, False, False, False)
    )


def test_launches_go_to_the_device_and_stream_given(emulated_cuda):
    threads = [threading.Thread(target=both_ways, args=(emulated_cuda, d, 0x1000 + d)) for d in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = emulated_cuda.emulation.log()
    assert len(log) == 9
    for device in (1, 2, 3):
        own = [launch for launch in log if launch.device == device]
        assert [launch.name for launch in own] == ["affine_forward", "sum_rows", "affine_backward"]
        assert {launch.stream for launch in own} == {0x1000 + device}


def test_the_current_device_is_put_back(emulated_cuda):
    both_ways(emulated_cuda, 2, 0)
    assert emulated_cuda.emulation.current_device() == 0
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        both_ways(emulated_cuda, 9, 0)
    assert emulated_cuda.emulation.current_device() == 0


def test_device_problem(emulated_cuda):
    assert emulated_cuda.device_problem(0) is None
    assert emulated_cuda.device_problem(9) == "there is no CUDA device 9"
