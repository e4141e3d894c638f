"""What the launchers of rational-quadratic splines do on the device: how many kernels, where, with how many blocks, and
how many bytes they move.
"""

from __future__ import annotations

import threading

import pytest
import torch

import flowkernels as fk
from flowkernels.ops.rational_quadratic_spline import cost, plan

from .test_launches import SECTOR, launch_on

EIGHT = fk.SplineForm(8, 3.0)
TRAILING = fk.SplineForm(8, 3.0, layout="trailing_widths_heights_derivatives")
CIRCULAR = fk.SplineForm(4, 3.0, tails="circular")  # 12 numbers: an even stride is padded in shared memory
MANY = fk.SplineForm(40, 3.0)  # too many bins for shared memory


def call(form, shape, passive=0, dtype=torch.float32, raw_dtype=None, mask=None, **layout):
    """Inputs of one call that need gradients, and what else `fk.rational_quadratic_spline` takes."""
    active = (shape[0], shape[1] - abs(passive), *shape[2:])
    raw_shape = (active[0], form.parameters * active[1], *active[2:])
    if form is TRAILING:
        raw_shape = (*active, form.parameters)
    x = torch.randn(shape, dtype=dtype).to(**layout).requires_grad_()
    raw = torch.randn(raw_shape, dtype=raw_dtype or dtype)
    return (x, (raw.to(**layout) if raw.dim() == 4 else raw).requires_grad_()), (mask, form, passive, False)


def run(module, tensors, options):
    """The launches of a forward and of its backward pass."""
    mask, form, passive, inverse = options
    emulation = module.emulation
    with fk.backend("cuda"):
        emulation.reset()
        outputs = fk.rational_quadratic_spline(*tensors, form=form, mask=mask, passive=passive, inverse=inverse)
        forward = emulation.log()
        emulation.reset()
        torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
        return forward, emulation.log()


def costs(tensors, options):
    """What cost.py says of the same."""
    x, raw = tensors
    grad_log_det = torch.empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return cost.forward(x, raw, *options), cost.backward(x, grad_log_det, x, raw, *options)


# (form, shape, passive) with rows of whole sectors, so that the formulas hold to the byte.
EXACT = [
    (EIGHT, (64, 32), 16),
    (EIGHT, (40, 16), 0),
    (TRAILING, (5, 96), -32),
    (EIGHT, (3, 272), 0),
    (EIGHT, (4, 6, 4, 4), 3),
    (CIRCULAR, (16, 16), 0),
    (fk.SplineForm(1, 2.0), (1, 16512), 0),
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


def test_many_bins_are_read_where_they_lie(emulated_cuda):
    """Derivatives are then read of one bin only, and the sectors between them are not."""
    tensors, options = call(MANY, (4, 32), 16)
    emulated_cuda.emulation.count_sectors(True)
    for (launch,), expected in zip(run(emulated_cuda, tensors, options), costs(tensors, options)):
        assert 0.6 * expected.read <= launch.loaded * SECTOR <= expected.read
        assert 0 <= launch.stored * SECTOR - expected.written <= SECTOR


def test_bytes_of_an_element():
    """The floors that the design names, for float32 and 8 bins, and 4 bytes for each log-determinant."""
    elements, rows = 64 * 1024, 64
    for expected, floor in zip(costs(*call(EIGHT, (rows, 1024))), (100, 196)):
        assert expected.bytes == expected.floor == floor * elements + 4 * rows


@pytest.mark.parametrize(
    "form, shape, dtype, raw_dtype, layout",
    [
        (EIGHT, (32, 16), torch.float32, torch.float32, {}),
        (EIGHT, (32, 16), torch.bfloat16, torch.float16, {}),
        (EIGHT, (32, 16), torch.float64, torch.float32, {}),
        (CIRCULAR, (32, 16), torch.float32, torch.float32, {}),
        (EIGHT, (2, 4, 8, 8), torch.float32, torch.float32, {}),
        (TRAILING, (2, 4, 8, 8), torch.float32, torch.float32, {}),
        (EIGHT, (2, 4, 8, 8), torch.float32, torch.float32, {"memory_format": torch.channels_last}),
    ],
)
def test_warps_read_whole_sectors(emulated_cuda, form, shape, dtype, raw_dtype, layout):
    tensors, options = call(form, shape, 0, dtype, raw_dtype, **layout)
    emulated_cuda.emulation.count_sectors(True)
    for launches, expected in zip(run(emulated_cuda, tensors, options), costs(tensors, options)):
        (launch,) = launches
        # The log-determinant of a row is read by the warps that share it.
        rows = shape[0] + tensors[0].numel() // 32
        assert launch.load_requests <= launch.loaded + rows
        assert launch.store_requests <= launch.stored + rows
        assert 0 <= launch.loaded * SECTOR - expected.read <= 2 * SECTOR
        assert 0 <= launch.stored * SECTOR - expected.written <= 2 * SECTOR


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("form", [EIGHT, CIRCULAR], ids=["odd", "even"])
def test_rows_without_alignment_cost_no_more_bytes(emulated_cuda, form, offset):
    """A run of numbers begins anywhere; what lies in words of 16 bytes is read as such."""
    (x, raw), options = call(form, (50, 9))
    storage = torch.randn(raw.numel() + offset)
    raw = storage[offset:].view(raw.shape).requires_grad_()
    emulated_cuda.emulation.count_sectors(True)
    for (launch,), expected in zip(run(emulated_cuda, (x, raw), options), costs((x, raw), options)):
        assert 0 <= launch.loaded * SECTOR - expected.read <= 4 * SECTOR
        assert 0 <= launch.stored * SECTOR - expected.written <= 4 * SECTOR


def test_masked_pictures(emulated_cuda):
    mask = fk.nn.checkerboard_mask(4, 8)
    tensors, options = call(EIGHT, (4, 3, 4, 8), mask=mask)
    emulated_cuda.emulation.count_sectors(True)
    for (launch,), expected in zip(run(emulated_cuda, tensors, options), costs(tensors, options)):
        assert 0 <= launch.loaded * SECTOR - expected.read <= 2 * SECTOR
        assert 0 <= launch.stored * SECTOR - expected.written <= 2 * SECTOR


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_what_needs_no_gradient_is_not_written(emulated_cuda, wanted):
    tensors, options = call(EIGHT, (64, 32), 16)
    tensors = tuple(t.detach().requires_grad_(w) for t, w in zip(tensors, wanted))
    emulated_cuda.emulation.count_sectors(True)
    _, (launch,) = run(emulated_cuda, tensors, options)
    expected = cost.backward(tensors[0], torch.empty(64), *tensors, *options, (*wanted, False))
    assert launch.stored * SECTOR == expected.written
    assert launch.loaded * SECTOR == expected.read


# (rows, features) of float32, half of them active -> blocks of the launches.
BLOCKS = {
    (0, 8): [],
    (1, 2): [1],
    (2000, 2): [16],  # an element a row
    (2000, 16): [125],
    (100, 10): [4],  # 25 rows of 5
    (30, 200): [30],  # a block a row
    (3, 2050): [3],  # elements in turns
    (2, 32768): [2],
    (2, 32770): [6, 2],  # chunks, then their sums
}


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_grid(emulated_cuda, shape):
    tensors, options = call(fk.SplineForm(1, 2.0), shape, shape[1] // 2)
    forward, backward = run(emulated_cuda, tensors, options)
    assert [launch.blocks for launch in forward] == BLOCKS[shape]
    assert [launch.blocks for launch in backward] == BLOCKS[shape][:1]
    assert all(launch.threads == 128 for launch in forward[:1] + backward)
    assert [len(forward), len(backward)] == [expected.launches for expected in costs(tensors, options)]


def test_nothing_active_fills_log_det(emulated_cuda):
    for shape, passive in (((3, 0), 0), ((3, 5), 5), ((2, 16400), 16400)):
        (x, raw), _ = call(EIGHT, shape, passive)
        with fk.backend("cuda"):
            y, log_det = fk.rational_quadratic_spline(x, raw, form=EIGHT, passive=passive)
        assert torch.equal(y, x)
        assert torch.equal(log_det, torch.zeros(shape[0]))


@pytest.mark.parametrize("features", [3, 40, 129])
def test_log_det_does_not_depend_on_the_batch(emulated_cuda, features):
    (x, raw), _ = call(EIGHT, (50, features))
    with fk.backend("cuda"), torch.no_grad():
        _, together = fk.rational_quadratic_spline(x, raw, form=EIGHT)
        for row in (0, 1, 43, 49):
            _, alone = fk.rational_quadratic_spline(x[row : row + 1], raw[row : row + 1], form=EIGHT)
            assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("form, shape", [(EIGHT, (9, 103)), (CIRCULAR, (40, 7)), (EIGHT, (2, 300)), (MANY, (9, 7))])
def test_order_of_threads_changes_nothing(emulated_cuda, form, shape):
    tensors, _ = call(form, shape, 2)
    results = []
    for schedule in ("forward", "reverse", "shuffled", "shuffled"):
        emulated_cuda.emulation.schedule(schedule, len(results))
        with fk.backend("cuda"):
            y, log_det = fk.rational_quadratic_spline(*tensors, form=form, passive=2)
            results.append((y, log_det, *torch.autograd.grad((y * y).sum() + log_det.sum(), tensors)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def both_ways(module, device, stream):
    form = fk.SplineForm(1, 2.0)
    x, raw = torch.randn(1, 16500), torch.randn(1, 2 * 16500)
    y, _ = plan.forward(module, launch_on(device, stream), x, raw, None, form, 0, False)
    plan.backward(
        module, launch_on(device, stream), y, torch.ones(1), x, raw, None, form, 0, False, (True, True, False)
    )


def test_launches_go_to_the_device_and_stream_given(emulated_cuda):
    threads = [threading.Thread(target=both_ways, args=(emulated_cuda, d, 0x1000 + d)) for d in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = emulated_cuda.emulation.log()
    assert len(log) == 6
    for device in (1, 2):
        own = [launch for launch in log if launch.device == device]
        assert [launch.name for launch in own] == ["spline_forward", "sum_rows", "spline_backward"]
        assert {launch.stream for launch in own} == {0x1000 + device}
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        both_ways(emulated_cuda, 9, 0)
    assert emulated_cuda.emulation.current_device() == 0
