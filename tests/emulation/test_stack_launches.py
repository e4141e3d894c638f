"""What the launchers of planar and radial flows do on the device: how many kernels, where, and how many bytes."""

from __future__ import annotations

import importlib
import threading

import pytest
import torch

import flowkernels as fk
from flowkernels.ops import stack

from ..ops.stack_cases import Call, inputs, run
from .test_launches import SECTOR, launch_on

OPS = ("planar", "radial")


def cost_of(op):
    """cost.py of an op."""
    return importlib.import_module(f"flowkernels.ops.{op}.cost")


def leaves(call, dtype=torch.float32, wanted=(True, True, True, True)):
    """The tensors of a call, of which `wanted` need a gradient."""
    parameters = torch.promote_types(dtype, torch.float32)
    given = {name: t.to(dtype if name == "x" else parameters) for name, t in inputs(call).items()}
    return {name: t.requires_grad_(w) for (name, t), w in zip(given.items(), wanted)}


def launches(module, call, tensors):
    """Those of a forward and of its backward pass."""
    emulation = module.emulation
    with fk.backend("cuda"):
        emulation.reset()
        outputs = run(call, tensors)
        forward = emulation.log()
        emulation.reset()
        torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
        return forward, emulation.log()


def costs(call, tensors):
    """What cost.py says of the same."""
    cost, values = cost_of(call.op), tuple(tensors.values())
    wanted = tuple(t.requires_grad for t in values)
    x, options = values[0], tuple(call.options.values())
    grad_log_det = torch.empty(x.shape[0], dtype=stack.accumulation_dtype(x.dtype))
    return cost.forward(*values, *options), cost.backward(x, grad_log_det, *values, *options, wanted=wanted)


def names(launched):
    """What ran, without the name of the op."""
    return [launch.name.split("_")[1] for launch in launched]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("depth", [1, 16, 17, 64, 256])
def test_one_launch_each_way_and_one_that_ends(emulated_cuda, op, inverse, depth):
    call = Call(op, features=2, depth=depth, inverse=inverse)
    forward, backward = launches(emulated_cuda, call, leaves(call))
    assert names(forward) == ["forward"]
    assert names(backward) == ["backward", "finish"]
    assert all(launch.threads == 256 for launch in forward + backward)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_nothing_reduced_over_the_batch_needs_no_second_launch(emulated_cuda, op, inverse):
    own = Call(op, depth=20, inverse=inverse, per_example=True)
    assert [names(log) for log in launches(emulated_cuda, own, leaves(own))] == [["forward"], ["backward"]]
    shared = Call(op, depth=20, inverse=inverse)
    of_x = leaves(shared, wanted=(True, False, False, False))
    assert names(launches(emulated_cuda, shared, of_x)[1]) == ["backward"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("features, depth", [(1537, 4), (2, 257), (300, 21)])
def test_large_stacks_of_planar_take_a_table(emulated_cuda, op, features, depth):
    call = Call(op, rows=2, features=features, depth=depth)
    table = ["table"] * (op == "planar")
    forward, backward = launches(emulated_cuda, call, leaves(call))
    assert names(forward) == [*table, "forward"]
    assert names(backward) == [*table, "backward", "finish"]


@pytest.mark.parametrize("op", OPS)
def test_nothing_to_do(emulated_cuda, op):
    for call in (Call(op, rows=0), Call(op, features=0), Call(op, depth=0)):
        tensors = leaves(call)
        counted = launches(emulated_cuda, call, tensors)
        assert [len(log) for log in counted] == [expected.launches for expected in costs(call, tensors)]
        assert tensors["x"].grad.shape == (call.rows, call.features)
        assert all(tensor.grad is not None for tensor in tensors.values())


# Shapes on each side of what decides how rows are shared, how much is kept, and how often sums are added to.
EXACT = [
    *(Call(op, rows=64, features=d, depth=k) for op in OPS for d, k in ((2, 4), (8, 17), (64, 5), (40, 33))),
    *(Call(op, rows=3, features=d, depth=3) for op in OPS for d in (256, 512, 2048, 4096)),
    *(Call(op, rows=8, features=1536, depth=5) for op in OPS),
    *(Call(op, rows=64, features=16, depth=20, per_example=True) for op in OPS),
    *(Call(op, rows=64, features=16, depth=20, inverse=True) for op in OPS),
    *(Call(op, rows=32, features=128, depth=3, per_example=True, inverse=True) for op in OPS),
    *(Call(op, rows=300, features=320, depth=1) for op in OPS),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("call", EXACT, ids=lambda c: f"{c.op}-{c}")
def test_every_sector_is_moved_once(emulated_cuda, call, dtype):
    tensors = leaves(call, dtype)
    emulated_cuda.emulation.count_sectors(True)
    for log, expected in zip(launches(emulated_cuda, call, tensors), costs(call, tensors)):
        assert len(log) == expected.launches
        # What has one number per row, or per layer, fills its sectors in part only, in the sums of each block too.
        ends = sum(launch.blocks for launch in log if not launch.name.endswith("forward")) + 4
        slack = (2 * len(log) + 2 * call.depth * ends) * SECTOR
        assert 0 <= sum(launch.loaded for launch in log) * SECTOR - expected.read <= slack
        assert 0 <= sum(launch.stored for launch in log) * SECTOR - expected.written <= slack


@pytest.mark.parametrize("op", OPS)
def test_what_needs_no_gradient_is_not_moved(emulated_cuda, op):
    call = Call(op, rows=64, features=16, depth=20)
    emulated_cuda.emulation.count_sectors(True)
    for wanted in ((True, False, False, False), (False, True, True, True)):
        tensors = leaves(call, wanted=wanted)
        (backward, *_), (_, expected) = launches(emulated_cuda, call, tensors)[1], costs(call, tensors)
        assert backward.stored * SECTOR <= expected.written + 2 * call.depth * SECTOR * backward.blocks


@pytest.mark.parametrize("op", OPS)
def test_warps_read_whole_sectors(emulated_cuda, op):
    call = Call(op, rows=64, features=64, depth=1)
    emulated_cuda.emulation.count_sectors(True)
    forward, (backward, _) = launches(emulated_cuda, call, leaves(call))
    of_parameters = 64 * 3 * 4 // SECTOR * 16  # which each of 16 warps reads
    for launch in (*forward, backward):
        assert launch.load_requests <= 1.1 * launch.loaded + 2 * of_parameters
        assert launch.store_requests <= 1.1 * launch.stored


# (rows, features): blocks of forward, of backward with shared parameters.
BLOCKS = {
    (1, 1): (1, 1),
    (20000, 2): (79, 79),  # a thread a row
    (2000, 8): (8, 8),
    (2000, 9): (16, 16),  # two lanes
    (600, 64): (19, 19),
    (600, 256): (75, 75),  # a warp
    (300, 257): (300, 256),  # a block; at most 256 sums
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_grid(emulated_cuda, op, shape):
    call = Call(op, *shape, depth=1)
    forward, backward = launches(emulated_cuda, call, leaves(call))
    assert (forward[-1].blocks, backward[0].blocks) == BLOCKS[shape]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "rows, features, depth", [(2**20, 2, 32), (2**20, 8, 256), (2**16, 256, 64), (2**12, 4096, 256)]
)
@pytest.mark.parametrize("inverse", [False, True])
def test_workspaces_are_bounded(emulated_cuda, op, rows, features, depth, inverse):
    options = {"activation": "tanh", "negative_slope": 0.0} if op == "planar" else {}
    plan = getattr(emulated_cuda, op.capitalize() + "Backward")(
        x_dtype=1, rows=rows, features=features, depth=depth, per_example=False, inverse=inverse,
        parameter_strides=[0, 0, 0], saved_strides=[features, 1], grad_y_strides=[features, 1],
        grad_log_det_stride=1, of_parameters=True, **options,
    )  # fmt: skip
    assert 0 < plan.workspace <= 2**26 + 2**14


def test_rows_that_no_block_holds_are_refused(emulated_cuda):
    call = Call("planar", rows=2, features=4097, depth=1)
    with fk.backend("cuda"), pytest.raises(ValueError, match="4097 features; kernels take 4096"):
        run(call, leaves(call))


@pytest.mark.parametrize(
    "call",
    [Call(op, r, d, 18, inverse=i) for op in OPS for r, d in ((70, 3), (300, 12), (3, 300)) for i in (False, True)],
    ids=lambda c: f"{c.op}-{c}",
)
def test_order_of_threads_changes_nothing(emulated_cuda, call):
    results = []
    for schedule in ("forward", "reverse", "shuffled"):
        emulated_cuda.emulation.schedule(schedule, len(results))
        torch.manual_seed(1)
        tensors = leaves(call)
        with fk.backend("cuda"):
            y, log_det = run(call, tensors)
            results.append((y, log_det, *torch.autograd.grad((y * y).sum() + log_det.sum(), list(tensors.values()))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def both_ways(module, device, stream):
    """A planar stack with a table, forward and backward, as if its tensors were on a device."""
    x, u, w, b = torch.randn(2, 300), torch.randn(21, 300), torch.randn(21, 300), torch.randn(21)
    common = {
        "x_dtype": 0,
        "rows": 2,
        "features": 300,
        "depth": 21,
        "per_example": False,
        "inverse": False,
        "parameter_strides": [0, 0, 0],
        "activation": "tanh",
        "negative_slope": 0.0,
    }
    launch = launch_on(device, stream)
    forward = module.PlanarForward(x_strides=[300, 1], **common)
    launch(forward, None, x, u, w, b, torch.empty_like(x), torch.empty(2))
    backward = module.PlanarBackward(
        saved_strides=[300, 1], grad_y_strides=[300, 1], grad_log_det_stride=1, of_parameters=True, **common
    )
    grads = [torch.empty_like(t) for t in (x, u, w, b)]
    launch(backward, None, x, torch.ones(2), x, u, w, b, *grads)


def test_launches_go_to_the_device_and_stream_given(emulated_cuda):
    threads = [threading.Thread(target=both_ways, args=(emulated_cuda, d, 0x1000 + d)) for d in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = emulated_cuda.emulation.log()
    assert len(log) == 15
    for device in (1, 2, 3):
        own = [launch for launch in log if launch.device == device]
        assert names(own) == ["table", "forward", "table", "backward", "finish"]
        assert {launch.stream for launch in own} == {0x1000 + device}
    assert emulated_cuda.emulation.current_device() == 0
