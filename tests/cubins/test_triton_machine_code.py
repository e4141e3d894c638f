"""The machine code of the Triton kernels: what it must never contain, and a table that changes only on purpose."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="no triton here")

pytestmark = pytest.mark.slow  # about a minute of compiling

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "triton_table.json"
COMMITTED = json.loads(TABLE.read_text())
CODE = COMMITTED["machine code"]
NVIDIA = [name for name in CODE if "gfx" not in name]
SINGLE = [name for name in NVIDIA if not name.startswith("float64")]

# Cases whose tensors of x's and raw's shape all lie in rows of contiguous, aligned elements.
ODD = ("alternating", "two features", "transposed", "misaligned")
VECTORS = [name for name in NVIDIA if "sum_partials" not in name and not name.startswith(ODD)]


@pytest.fixture(scope="module")
def result() -> dict:
    """What the compiler makes now, in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parent.parent)
    command = [sys.executable, "-W", "ignore", HERE / "compile_triton.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def row(request, result) -> dict:
    return result["machine code"][request.param]


def test_every_kernel_of_the_table_was_compiled(result):
    assert sorted(result["machine code"]) == sorted(CODE)


@pytest.mark.parametrize("row", CODE, indirect=True)
def test_nothing_spills(row):
    for kind in ("stack", "local accesses", "vector spills", "scalar spills"):
        assert row.get(kind, 0) == 0, kind


@pytest.mark.parametrize("row", SINGLE, indirect=True)
def test_no_double_precision_in_a_float_kernel(row):
    assert row["double"] == 0


@pytest.mark.parametrize("row", SINGLE, indirect=True)
def test_no_approximate_instruction_in_a_float_kernel(row):
    """Triton's exp, log, division and square root are approximate; triton_math has what stands in for them."""
    assert row["approximate"] == []


@pytest.mark.parametrize("row", VECTORS, indirect=True)
def test_tensors_are_moved_16_bytes_at_a_time(row):
    # One narrower access each for what there is once a row (the log-determinant or its gradient) and for the mask.
    for kind, most in (("loads", 2), ("stores", 1)):
        assert row[kind]["128"] > 0, kind
        assert sum(count for width, count in row[kind].items() if width != "128") <= most, kind


@pytest.mark.parametrize("row", [name for name in NVIDIA if "sm_90" in name], indirect=True)
def test_half_of_the_threads_of_a_multiprocessor_fit(row):
    # 65,536 registers; with fewer threads a thread has at least two 16-byte loads in flight.
    few = row["registers"] <= 64
    assert few or row["loads"].get("128", 0) >= 4 or row["loads"].get("32", 0) >= 4


def test_few_programs_only_for_little_work():
    """Both a long batch of pairs and a few huge rows give every multiprocessor of a large GPU work."""
    for name in ("10000000 x 2", "4 x 1000000"):
        for direction in ("forward", "backward"):
            assert COMMITTED["grids"][f"{name} | {direction}"]["programs"] >= 132


def test_how_batches_are_cut_is_as_committed(result):
    assert result["grids"] == COMMITTED["grids"]


def test_machine_code_is_as_committed(result):
    """Write the table anew (compile_triton.py says how) if a change is meant, and look at what changed."""
    if result["triton"] != COMMITTED["triton"]:
        pytest.skip(f"the table of machine code is of another Triton ({COMMITTED['triton']})")
    changed = {
        name: (CODE.get(name), found) for name, found in result["machine code"].items() if found != CODE.get(name)
    }
    assert not changed


def test_alternating_gradients_are_stored_16_bytes_at_a_time(result):
    stores = result["machine code"]["alternating | backward | sm_90"]["stores"]
    assert set(stores) == {"128"}
