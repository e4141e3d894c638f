"""The machine code of the CUDA kernels, read back from the module for all default architectures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import compile_cuda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compile_cuda.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(compile_cuda.cuobjdump() is None, reason="no cuobjdump"),
]

COMMITTED = json.loads((Path(__file__).parent / "cuda_table.json").read_text())
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
REGISTERS = 65536  # of a multiprocessor


def threads(name):
    """Of a block."""
    return 128 if name.startswith("spline") else 256


@pytest.fixture(scope="module")
def built():
    return compile_cuda.table()


def rows(built):
    return [(arch, name, row) for arch, kernels in built["kernels"].items() for name, row in kernels.items()]


def test_all_architectures_have_all_kernels(built):
    assert set(built["kernels"]) == set(ARCHITECTURES)
    names = {frozenset(kernels) for kernels in built["kernels"].values()}
    assert len(names) == 1
    affine = 2 * 2 * 11 + 2  # directions, accesses, pairs of dtypes; and the sums of rows
    stacks = 2 * 2 * 2 * 4 + 2 * 4 + 2 * 2  # ops, directions, dtypes, features of a thread; tables; ends
    elementwise = 2 * (4 * 2 + 4 + 4 * 2 + 2 * 11)  # accesses; pairs of dtypes of dequantization's kernels, of split's
    splines = 2 * (5 + 2)  # directions; bins 8, 10, 16, any, too many for shared memory, the last two for doubles also
    assert len(names.pop()) == affine + stacks + elementwise + splines


def test_nothing_spills(built):
    for arch, name, row in rows(built):
        assert row["local"] == 0, (arch, name)
        assert row["stack"] == 0, (arch, name)


def test_double_precision_stays_in_double_kernels(built):
    for arch, name, row in rows(built):
        assert (row["double"] > 0) == ("double" in name), (arch, name)


SIZES = {"float": 4, "double": 8, "Half": 2, "BFloat16": 2, "unsigned char": 1, "int": 4}


def kernels_by_types(built, family):
    """Those that take neighbours: architecture, name without the family, sizes of both types, row."""
    types = "|".join(SIZES)
    for arch, name, row in rows(built):
        if found := re.fullmatch(rf"{family} (\w+) ({types}) ({types}) Neighbours \d", name):
            yield arch, found[1], SIZES[found[2]], SIZES[found[3]], row


def test_accesses_are_as_wide_as_the_layout_allows(built):
    """Those of the larger type have 128 bits; of two different types the other's have 64. One more is of the copy."""
    of_x_and_raw = {"forward": ((1, 2), (1, 0)), "backward": ((2, 1), (1, 2))}  # loads, stores
    for arch, direction, x, raw, row in kernels_by_types(built, "affine"):
        for access, (of_x, of_raw) in zip(("loads", "stores"), of_x_and_raw[direction]):
            wide = of_x * (x >= raw) + of_raw * (raw >= x)
            assert row[f"{access} of 128 bits"] == wide + 1, (arch, direction, x, raw)


def test_accesses_of_elementwise_kernels_are_as_wide(built):
    """A compiler may make the walk twice, for a prior with deviations and for one without; what is then there twice are
    the accesses of the prior."""
    of_each = {  # the first type, the second, numbers per row: loads, stores
        "DequantizeForward": ((1, 1, 0), (1, 0, 1)),
        "DequantizeBackward": ((2, 0, 1), (1, 0, 0)),
        "Quantize": ((1, 0, 0), (0, 1, 0)),
        "SplitForward": ((1, 2, 0), (0, 0, 1)),
        "SplitBackward": ((1, 2, 1), (1, 2, 0)),
    }
    for arch, op, x, other, row in kernels_by_types(built, "elementwise map"):
        for access, (of_x, of_other, of_rows) in zip(("loads", "stores"), of_each[op]):
            allowed = [
                (of_x + times * of_other + of_rows, of_x * (x >= other) + times * of_other * (other >= x))
                for times in (1, 2)
            ]
            assert (row[access], row[f"{access} of 128 bits"]) in allowed, (arch, op, x, other)


def test_rows_of_stacks_move_by_128_bits(built):
    """Where a thread has as many neighbours: parameters and inputs in every layer, x and y."""
    for arch, name, row in rows(built):
        found = re.fullmatch(r"(forward|backward) (?:Planar|Radial) (float|double) (\d+)", name)
        if found is None or (found[2] == "float" and int(found[3]) < 4):
            continue
        groups = int(found[3]) * (4 if found[2] == "float" else 8) // 16
        loads, stores = (2, 1) if found[1] == "forward" else (5, 3)
        assert row["loads of 128 bits"] >= loads * groups, (arch, name)
        assert row["stores of 128 bits"] >= stores * groups, (arch, name)


def splines(built):
    """Architecture, direction, bytes of a number in shared memory, bins if they are a constant, whether staged, row."""
    for arch, name, row in rows(built):
        if found := re.fullmatch(r"spline (forward|backward) (float|double) (\d+) (true|false)", name):
            yield arch, found[1], SIZES[found[2]], int(found[3]), found[4] == "true", row


def test_numbers_of_splines_move_by_128_bits(built):
    """Of each storage type, six loads under way at a time; one load and one store copy what is passive."""
    for arch, direction, size, bins, staged, row in splines(built):
        types = 3 if size == 4 else 2
        loads, stores = (6 * types, types * (direction == "backward")) if staged else (0, 0)
        assert row["loads of 128 bits"] >= loads + 1, (arch, direction, size, bins, staged)
        assert row["stores of 128 bits"] >= stores + 1, (arch, direction, size, bins, staged)


def test_a_constant_number_of_bins_saves_instructions(built):
    rows_of = {key: row for *key, row in splines(built) for key in [tuple(key)]}
    for arch in ARCHITECTURES:
        for direction in ("forward", "backward"):
            for bins in (8, 10):
                constant, any_number = (rows_of[arch, direction, 4, k, True] for k in (bins, 0))
                assert constant["instructions"] < any_number["instructions"], (arch, direction, bins)


def spline_blocks(name):
    """Of 128 threads. Six loads of 16 bytes that each has under way make up for fewer than half of the threads that
    there can be; 16 bins of both axes alone are 32 registers."""
    if "double" in name:
        return 3
    if "forward" in name:
        return 8
    return 6 if re.search(" (8|10) ", name) else 4 if " 16 " in name else 5


def blocks_needed(name):
    """Half of the threads that a multiprocessor can have; less for doubles, and for stacks, which compute more than
    they wait: whose threads keep rows and their gradients, up to 16 features of each."""
    if name.startswith("spline"):
        return spline_blocks(name)
    if name.startswith("elementwise"):
        return 2 if "double" in name else 4
    if "double" in name or re.fullmatch(r"backward (Planar|Radial) float 16", name):
        return 1
    return 2 if re.fullmatch(r"backward (Planar|Radial) float \d+|forward (Planar|Radial) float 16", name) else 3


def test_blocks_fit_the_registers(built):
    for arch, name, row in rows(built):
        blocks = REGISTERS // (threads(name) * -(-row["registers"] // 8) * 8)
        assert blocks >= blocks_needed(name), (arch, name)
        assert row["shared"] <= 48 * 1024


def test_a_feature_more_costs_few_instructions_in_a_layer(built):
    """Elementary functions and sums over threads are there once; a feature adds what both directions of the map read,
    sum and step, and backward what their derivatives do."""
    most = {"forward Planar": 52, "forward Radial": 24, "backward Planar": 108, "backward Radial": 48}
    for arch, kernels in built["kernels"].items():
        for kernel, bound in most.items():
            few, many = (kernels[f"{kernel} float {features}"]["instructions of a layer"] for features in (2, 16))
            assert 0 < many - few <= 14 * bound, (arch, kernel)


def test_table_is_as_committed(built):
    if built["nvcc"] != COMMITTED["nvcc"]:
        pytest.skip(f"the table was made by nvcc {COMMITTED['nvcc']}; this is another")
    changed = [
        (arch, name, COMMITTED["kernels"].get(arch, {}).get(name), row)
        for arch, name, row in rows(built)
        if COMMITTED["kernels"].get(arch, {}).get(name) != row
    ]
    assert not changed, "if on purpose: python -m tests.cubins.compile_cuda > tests/cubins/cuda_table.json"


SCRIPT = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("flowkernels._cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "libcuda.so" not in open("/proc/self/maps").read()  # the runtime opens the driver with its first call
print(module.emulated, *module.architectures, module.device_problem(0), sep="|")
"""


def test_importing_makes_no_call_of_the_runtime_and_a_missing_device_has_a_reason(built):
    done = subprocess.run([sys.executable, "-c", SCRIPT, compile_cuda.module()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    emulated, *architectures, problem = done.stdout.strip().split("|")
    assert emulated == "False"
    assert architectures == ["75-real", "80-real", "90-real", "100", "120"]
    assert problem == "None" or problem.startswith("no usable CUDA device: ")
