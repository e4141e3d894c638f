"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .build import ROOT
from .faults import Fault, Tree

pytestmark = pytest.mark.slow

NO_BARRIER = Fault("cuda/reduce.cuh", "  __syncthreads();\n", "")
ONE_PLACE = Fault("cuda/lanes.cuh", "  turn ^= 1;\n", "")  # where a warp may write what another still reads
TOO_FAR = Fault("cuda/elements.cuh", "index + s.lanes < s.count", "index + s.lanes <= s.count")
OTHER_ROW = Fault("cuda/stack.cuh", "(exists ? row : stack.rows - 1)", "row")
OUTSIDE_SHARED = Fault("cuda/reduce.cuh", "partial[warp * columns + lane] = value", "partial[kThreads + warp] = value")


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("thread"))


def test_no_race(threads):
    done = threads.run(None, "one schedule", threads=True, sanitize="thread")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("fault, place", [(NO_BARRIER, "sum_lanes"), (ONE_PLACE, "sum_row")])
def test_a_missing_barrier_is_a_race(threads, fault, place):
    done = threads.run(fault, "one schedule", threads=True, sanitize="thread")
    assert "data race" in done.stdout
    assert place in done.stdout
    assert "forward_kernel" in done.stdout


# What a kernel can get wrong; the whole of "undefined" takes three times as long to compile.
ADDRESS = "address,alignment,bounds,shift,signed-integer-overflow"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("address"))


def test_no_bad_access(addresses):
    done = addresses.run(sanitize=ADDRESS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("fault", [TOO_FAR, OTHER_ROW, OUTSIDE_SHARED], ids=["global", "row of a stack", "shared"])
def test_a_bad_access_is_reported(addresses, fault):
    done = addresses.run(fault, sanitize=ADDRESS)
    assert "AddressSanitizer" in done.stdout


def test_tensors_of_torch_are_not_overstepped(addresses):
    """The suites of ops whose rows are walked, in Python, on a sanitised module."""
    libraries = (subprocess.check_output(["g++", f"-print-file-name=lib{n}.so"], text=True) for n in ("asan", "ubsan"))
    environment = os.environ | {
        "EMULATED_MODULE": str(addresses.module(sanitize=ADDRESS)),
        "LD_PRELOAD": " ".join(library.strip() for library in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    tests = (
        "tests/ops/test_affine_coupling.py::test_values_and_gradients",
        "tests/ops/test_dequantize.py::test_shapes",
        "tests/ops/test_split.py::test_shapes",
    )
    command = [sys.executable, "-m", "pytest", *tests, "-k", "cuda", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "passed" in done.stdout
