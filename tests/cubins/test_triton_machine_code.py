"""The machine code of the Triton kernels: what it must never contain, and a table that changes only on purpose."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="no triton here")

pytestmark = pytest.mark.slow  # minutes of compiling

HERE = pathlib.Path(__file__).parent
TABLE = HERE / "triton_table.json"
COMMITTED = json.loads(TABLE.read_text())
CODE = COMMITTED["machine code"]
NVIDIA = [name for name in CODE if "gfx" not in name]
SINGLE = [name for name in NVIDIA if "float64" not in name]
STACKS = [name for name in NVIDIA if name.startswith(("planar", "radial"))]
SPLINES = [name for name in NVIDIA if name.startswith("spline")]

# Cases whose tensors of x's and raw's shape do not all lie in rows of contiguous, aligned elements in one order, unlike
# the others: channels of images that are kept last, of which a split scores half, have contiguous gradients.
ODD = "^alternating|two features|transposed|misaligned|split image, channels_last . backward"
# A spline's parameters are mostly an odd number; its elements have a thread each.
VECTORS = [name for name in NVIDIA if not re.search(f"{ODD}|sum_partials", name) and name not in SPLINES]
# Stacks of few features read rows that have no 16 bytes; backward has more that there is once a row or layer.
LONG = [name for name in VECTORS if name not in STACKS or not re.search(", 2 features|bfloat16| finish ", name)]
# Results that are numbers of rows, or bytes of which no thread has 16.
FEW_BYTES = [name for name in LONG if re.search(r"^split.* forward|(?<!levels) . quantize", name)]
MOST = [name for name in LONG if name not in STACKS or " forward " in name]

# The longest rows that one program takes: a few numbers that no loop needs may leave the registers.
LONGEST = [name for name in STACKS if re.search("8192 features|4096 features in float64", name)]


@pytest.fixture(scope="module")
def result() -> dict:
    """What the compiler makes now, in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.compile_triton"]
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def row(request, result) -> dict:
    return result["machine code"][request.param]


def test_every_kernel_of_the_table_was_compiled(result):
    assert sorted(result["machine code"]) == sorted(CODE)


@pytest.mark.parametrize("row", [name for name in CODE if name not in LONGEST], indirect=True)
def test_nothing_spills(row):
    for kind in ("stack", "local accesses", "vector spills", "scalar spills"):
        assert row.get(kind, 0) == 0, kind


@pytest.mark.parametrize("row", LONGEST, indirect=True)
def test_hardly_anything_of_the_longest_rows_spills(row):
    assert row["stack"] <= 64


@pytest.mark.parametrize("row", SINGLE, indirect=True)
def test_no_double_precision_in_a_float_kernel(row):
    assert row["double"] == 0


@pytest.mark.parametrize("row", SINGLE, indirect=True)
def test_no_approximate_instruction_in_a_float_kernel(row):
    """Triton's exp, log, division and square root are approximate; triton_math has what stands in for them."""
    assert row["approximate"] == []


@pytest.mark.parametrize("row", LONG, indirect=True)
def test_tensors_are_read_16_bytes_at_a_time(row):
    assert row["loads"]["128"] > 0


@pytest.mark.parametrize("row", [name for name in LONG if name not in FEW_BYTES], indirect=True)
def test_tensors_are_written_16_bytes_at_a_time(row):
    assert row["stores"]["128"] > 0


@pytest.mark.parametrize("row", MOST, indirect=True)
def test_hardly_anything_is_moved_otherwise(row):
    # One narrower access each for what there is once a row (the log-determinant or its gradient) and for the mask, or
    # for the two numbers of a layer, of two rows where they have their own.
    loads = 4 if row.get("barriers") else 2
    for kind, most in (("loads", loads), ("stores", 1)):
        assert sum(count for width, count in row[kind].items() if width != "128") <= most, kind


ROOMY = [name for name in NVIDIA if "sm_90" in name and not (name in STACKS and "float64" in name)]


@pytest.mark.parametrize("row", ROOMY, indirect=True)
def test_half_of_the_threads_of_a_multiprocessor_fit(row):
    # 65,536 registers; with fewer threads a thread has at least four loads in flight, and 16 bytes.
    few = row["registers"] <= 64
    assert few or any(count >= max(4, 128 // int(width)) for width, count in row["loads"].items())


@pytest.mark.parametrize("row", [name for name in STACKS if "sm_90" in name and " forward " in name], indirect=True)
def test_rows_of_a_stack_need_no_barrier_within_a_warp(row, request):
    """Sums over features stay within a warp; the inverse asks the other warps whether it needs another step."""
    name = request.node.callspec.params["row"]
    if not re.search("(8|4096|8192) features|transposed", name):
        assert row["barriers"] <= (4 if name.startswith("planar inverse") else 1)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("op", ["planar", "planar inverse", "radial", "radial inverse"])
def test_an_element_costs_fewer_instructions_in_a_layer_the_longer_its_row_is(result, op, direction):
    """An exact tanh, a solve and a reduction over threads are there once for a row; what is left at 8192 features are
    two sums and a step forward, and their derivatives and three sums over the batch backward."""
    cases = [op + features for features in (", 2 features", ", 8 features", "", ", 4096 features", ", 8192 features")]
    found = [result["machine code"][f"{case} | {direction} | sm_90"] for case in cases]
    costs = [row["instructions per element and layer"] for row in found]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] <= 30


# Their parameters, or their columns, lie in memory 4 by 4.
FOURS = [name for name in SPLINES if re.search("circular|image .", name)]


@pytest.mark.parametrize("row", FOURS, indirect=True)
def test_parameters_of_splines_are_moved_16_bytes_at_a_time_where_they_can_be(row, request):
    assert row["loads"]["128"] >= 4
    if " backward " in request.node.callspec.params["row"]:
        assert row["stores"]["128"] >= 6


FEW_BINS = [name for name in SPLINES if not re.search("32 bins|1024 bins|sum_partials", name)]


@pytest.mark.parametrize("row", FEW_BINS, indirect=True)
def test_bins_of_an_element_stay_within_its_thread(row):
    """Sums over bins would take three shuffles each, of which there are more than ten. Sums over rows take a few, and
    float64 two for each."""
    assert row["shuffles"] <= 16


def test_few_programs_only_for_little_work():
    """Both a long batch of pairs and a few huge rows give every multiprocessor of a large GPU work."""
    for name in ("10000000 x 2", "4 x 1000000"):
        for direction in ("forward", "backward"):
            assert COMMITTED["grids"][f"{name} | {direction}"]["programs"] >= 132


def test_how_batches_are_cut_is_as_committed(result):
    assert result["grids"] == COMMITTED["grids"]
    assert result["grids of stacks"] == COMMITTED["grids of stacks"]


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
