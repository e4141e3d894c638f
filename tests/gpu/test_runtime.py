"""Streams, devices, threads and the CUDA runtime: what a kernel package shares with torch in one process."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys

import pytest
import torch

import flowkernels as fk

from .calls import both_ways, leaves, same
from .conftest import require

pytestmark = pytest.mark.gpu

PAUSE = 50_000_000  # cycles, some 30 ms: what does not wait for the stream is long done by then


def test_kernels_run_on_the_current_stream(backend, device):
    """The inputs are written late on a side stream: kernels of another stream would read NaN."""
    tensors = leaves((512, 256), device)
    with fk.backend(backend):
        expected = both_ways(tensors)
        late = [torch.full_like(t, torch.nan).requires_grad_() for t in tensors]
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            both_ways(late)  # allocates this stream's memory: to allocate it below could wait for the whole device
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(PAUSE)
            with torch.no_grad():
                for target, values in zip(late, tensors):
                    target.copy_(values)
            found = both_ways(late)
    stream.synchronize()
    assert same(found, expected)


def test_long_rows_and_learned_bounds_on_a_side_stream(backend, device):
    """Their second launch reads a workspace that the first wrote."""
    stream = torch.cuda.Stream(device)
    for shape, learned in (((4, 65536), False), ((2000, 48), True)):
        tensors = leaves(shape, device, learned)
        with fk.backend(backend):
            expected = both_ways(tensors)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                torch.cuda._sleep(PAUSE)
                found = both_ways(tensors)
        stream.synchronize()
        assert same(found, expected)


def test_events_of_torch_order_our_kernels(backend, device):
    """Events and streams belong to the driver: they mean the same to torch's runtime and to ours."""
    tensors = leaves((4096, 256), device)
    first, second = torch.cuda.Stream(device), torch.cuda.Stream(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with fk.backend(backend):
        expected = both_ways(tensors)
        torch.cuda.synchronize(device)
        with torch.cuda.stream(first):
            torch.cuda._sleep(PAUSE)
            begin.record()
            y, log_det = fk.affine_coupling(*tensors, form=fk.AffineForm("tanh", bound=2.0))
            end.record()
        with torch.cuda.stream(second):
            end.wait()
            copies = y.clone(), log_det.clone()
    torch.cuda.synchronize(device)
    assert begin.elapsed_time(end) > 0
    assert same(copies, expected[:2])


def test_a_device_that_is_not_current(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device only")
    other = torch.device("cuda", 1)
    require(backend, other)
    tensors = leaves((300, 1032), torch.device("cuda", 0))
    moved = [t.detach().to(other).requires_grad_() for t in tensors]
    with torch.cuda.device(0), fk.backend("reference"):
        expected = both_ways(moved)
    with torch.cuda.device(0), fk.backend(backend):
        found = both_ways(moved)
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(other)
    for value, truth in zip(found, expected):
        assert value.device == other
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4)


def test_two_threads(backend, device):
    """Each on its own stream, with plans that both make at the same time."""
    shapes = [(700 + n, 64 + n) for n in range(8)]
    inputs = [leaves(shape, device) for shape in shapes]
    with fk.backend(backend):
        found = _in_threads(inputs, device)
        expected = [both_ways(tensors) for tensors in inputs]
    torch.cuda.synchronize(device)
    for results in found:
        assert all(same(a, b) for a, b in zip(results, expected, strict=True))


def _in_threads(inputs, device):
    """The results of all inputs by each of two threads."""
    torch.cuda.synchronize(device)

    def work(order: int):
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            for _ in range(5):
                results = [both_ways(tensors) for tensors in inputs[::order]]
        stream.synchronize()
        return results[::order]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, (1, -1)))


# Our module links its own CUDA runtime. It has to bring no second shared one, and to be the first to call CUDA.
FIRST = """
import torch, flowkernels as fk
from flowkernels import backends

def runtimes():
    return {line.split()[-1] for line in open("/proc/self/maps") if "libcudart" in line}

before = runtimes()
backends.native_module(backends.CUDA)
assert not torch.cuda.is_initialized(), "importing flowkernels initialised CUDA"
assert backends.problem(backends.CUDA, "cuda", 0) is None
assert runtimes() == before, runtimes() - before
with fk.backend("cuda"):
    y, log_det = fk.affine_coupling(torch.ones(3, 4, device="cuda"), torch.zeros(3, 8, device="cuda"))
assert y.tolist() == [[1.0] * 4] * 3 and log_det.tolist() == [0.0] * 3
"""

# A process that imported the package, and did nothing else with it, may fork.
FORK = """
import multiprocessing
import torch, flowkernels as fk
from flowkernels import backends

backends.native_module(backends.CUDA)

def child():
    with fk.backend("cuda"):
        y, _ = fk.affine_coupling(torch.ones(3, 4, device="cuda"), torch.zeros(3, 8, device="cuda"))
    assert y.sum().item() == 12

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(120)
assert process.exitcode == 0, process.exitcode
"""


@pytest.mark.parametrize("program", [FIRST, FORK], ids=["our runtime beside torch's", "fork after import"])
def test_in_a_process_of_its_own(device, program):
    require("cuda", device)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
