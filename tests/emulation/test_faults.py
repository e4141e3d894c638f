"""A test of tests: each planted fault must be found by the checks that guard against its kind."""

from __future__ import annotations

import pytest

from .faults import Fault, Tree

pytestmark = pytest.mark.slow

KERNELS = "cuda/affine_coupling.cuh"
STACK = "cuda/stack.cuh"
ELEMENTWISE = "cuda/elementwise.cuh"
SPLINE = "cuda/rational_quadratic_spline.cuh"
END_OF_FORWARD = """  sum = sum_lanes(sum, a.mapping);
  if (s.first_lane) store(a.sums + s.number, sum);
}

// Returns the elements' part of the bound's gradient."""

# name: what is wrong, and what the driver must say about it; None where it may not live to say anything.
FAULTS = {
    "no barrier": (
        Fault("cuda/reduce.cuh", "  __syncthreads();\n", ""),
        "a block a row: wrong values",
    ),
    "one element too many": (
        Fault("cuda/elements.cuh", "index + s.lanes < s.count", "index + s.lanes <= s.count"),
        "ragged lanes: wrong values",
    ),
    "mask dropped": (
        Fault(KERNELS, "keep ? z.value[j] : narrow<X>(out.y)", "narrow<X>(out.y)"),
        "mask: wrong values",
    ),
    "mask dropped in a gradient": (
        Fault(KERNELS, "keep ? R{} : narrow<R>(grad.raw_shift)", "narrow<R>(grad.raw_shift)"),
        "mask: wrong values",
    ),
    "sign of log_det": (
        Fault(
            "flow/affine_coupling.h",
            "return {math::exp_normal(log_m), log_m}",
            "return {math::exp_normal(log_m), -log_m}",
        ),
        "lanes: wrong values",
    ),
    "half of a sum": (
        Fault("cuda/reduce.cuh", "apart >= columns", "apart > columns"),
        "lanes: wrong values",
    ),
    "32-bit offset": (
        Fault("cuda/elements.cuh", "t.data + (row * t.stride[0]", "t.data + static_cast<int32_t>(row * t.stride[0]"),
        None,
    ),
    "alignment unchecked": (
        Fault("cuda/dispatch.cuh", "reinterpret_cast<uintptr_t>(t.data) % bytes == 0 &&", ""),
        "not aligned",
    ),
    "threads that miss a barrier": (
        Fault("cuda/reduce.cuh", "if (tile <= 32) return", "if (tile <= 32 || threadIdx.x >= 32) return"),
        "divergent synchronisation",
    ),
    "threads that miss an exchange": (
        Fault(KERNELS, END_OF_FORWARD, "  if (s.count == 0) return;\n" + END_OF_FORWARD),
        "divergent synchronisation",
    ),
    "sign of the log_det of an inverse stack": (
        Fault(STACK, "a.stack.inverse ? -op.log_det() : op.log_det()", "op.log_det()"),
        "planar, inverse: wrong values",
    ),
    "a segment that starts elsewhere": (
        Fault(STACK, "if (segment < last) records.get_input_of(segment, z);", ""),
        "planar, a thread a row: wrong values",
    ),
    "sums that forget the block's rows before": (
        Fault(STACK, "first_ ? value : load(to) + value", "value"),
        "planar, a block a row: wrong values",
    ),
    "sums in each other's place": (
        Fault("cuda/lanes.cuh", "first + (upper ? count / 2 : 0)", "first"),
        "radial, lanes: wrong values",
    ),
    "partial sums left out": (
        Fault(STACK, "p += slices) sum", "p += 2 * slices) sum"),
        "planar, a block a row: wrong values",
    ),
    "the constraint forgotten in a gradient": (
        Fault("cuda/planar.cuh", "if (this->stack.per_example) through_constraint", "if (false) through_constraint"),
        "planar, own parameters: wrong values",
    ),
    "a table of the wrong layers": (
        Fault(STACK, "op.fill(a.table, blockIdx.x * op.rows())", "op.fill(a.table, 0)"),
        "planar, table: wrong values",
    ),
    "sign of the log_det of dequantization": (
        Fault("flow/dequantize.h", "c.log_share - (log.x + log.y)", "c.log_share + (log.x + log.y)"),
        "elements, lanes: wrong values",
    ),
    "sign of a deviation": (
        Fault("flow/split.h", "-log_sqrt_two_pi - log_std", "-log_sqrt_two_pi + log_std"),
        "elements, lanes: wrong values",
    ),
    "bytes in each other's place": (
        Fault("cuda/memory.cuh", "pair.value[0] | pair.value[1] << 8", "pair.value[1] | pair.value[0] << 8"),
        "elements, lanes: wrong values",
    ),
    "bytes as far apart as their neighbours": (
        Fault(ELEMENTWISE, "wide = wide && fits(a.others[i], box, n)", "wide = wide"),
        "elements, apart: wrong values",
    ),
    "an element that is not there summed": (
        Fault(ELEMENTWISE, "if (at.has(j)) sum +=", "sum +="),
        "elements, ragged lanes: wrong values",
    ),
    "a chunk left out": (
        Fault(ELEMENTWISE, "box.rows(), a.mapping.segments, stream", "box.rows(), a.mapping.segments - 1, stream"),
        "elements, chunks: wrong values",
    ),
    "the gradient of another row's sum": (
        Fault(ELEMENTWISE, "a.per_row + s.row * a.row_stride", "a.per_row + blockIdx.x * a.row_stride"),
        "elements, lanes: wrong values",
    ),
    "numbers read before they are there": (
        Fault(
            SPLINE, "      __syncthreads();\n      if (turn.exists && !kept) out", "      if (turn.exists && !kept) out"
        ),
        "spline, rows: wrong values",
    ),
    "gradients moved before they are there": (
        Fault(SPLINE, "      __syncthreads();\n      if (a.grad_raw", "      if (a.grad_raw"),
        "spline, rows: wrong values",
    ),
    "numbers of the next elements too early": (
        Fault(
            SPLINE,
            "      if (first > 0) __syncthreads();\n      tile.fill(a.raw, turn);\n      __syncthreads();\n      if",
            "      tile.fill(a.raw, turn);\n      __syncthreads();\n      if",
        ),
        "spline, a block a row: wrong values",
    ),
    "a place that is not padded": (
        Fault(SPLINE, "threadIdx.x * (parameters() | 1)", "threadIdx.x * parameters()"),
        "spline, even: wrong values",
    ),
    "no room for numbers that begin elsewhere": (
        Fault("cuda/rational_quadratic_spline.cu", "int64_t{parameters | 1} + 8", "int64_t{parameters | 1}"),
        "spline, offset: write outside an array in shared memory",
    ),
    "words that begin elsewhere in shared memory": (
        Fault(SPLINE, "    shift_ = run.shift;", "    "),
        "spline, offset: access of 16 bytes at an address not aligned",
    ),
    "numbers before the first word left out": (
        Fault(SPLINE, "rest = count - words * n;", "rest = count - before - words * n;"),
        "spline, offset: wrong values",
    ),
    "sums of rows that are no power of two": (
        Fault(SPLINE, "s.lane < apart && s.lane + apart < t.columns", "s.lane < apart"),
        "spline, ragged rows: wrong values",
    ),
    "gradients of numbers that a mask keeps": (
        Fault(SPLINE, "numbers.put(i, T(0))", "numbers.put(i, numbers.get(i))"),
        "spline, mask: wrong values",
    ),
    "a gradient of the bin's own width twice": (
        Fault("cuda/spline_element.cuh", "k < bin.number ? of_start", "k <= bin.number ? of_start"),
        "spline, rows: wrong values",
    ),
    "one derivative for both ends": (
        Fault("cuda/spline_element.cuh", "derivative_at(s, numbers, across.number + 1, end)", "end"),
        "spline, rows: wrong values",
    ),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("faults"))


def test_the_right_kernels_pass(tree):
    done = tree.run()
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(tree, name):
    fault, complaint = FAULTS[name]
    done = tree.run(fault)
    assert done.returncode != 0, "the fault was not noticed"
    if complaint is None:
        assert done.returncode < 0 or "far rows: wrong values" in done.stdout
    else:
        assert complaint in done.stdout
