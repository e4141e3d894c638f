// Elementwise ops on the CPU: tiles that fit the first-level cache go through one vectorised loop over the shared
// formula, an op's `Kernel`; the terms of a sum stay there until the tile's rows are summed.
#pragma once

#include "cpu/memory.h"
#include "cpu/sums.h"
#include "flow/elementwise.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

// What a kernel gets: arrays of `length` elements. An absent input is zeros, an absent output goes nowhere.
template <class T>
struct Run {
  const T* input[kOperands];
  const T* per_row;  // repeated for each element
  T* output[kOperands];
  T* terms;
  int64_t length;
};

template <class T>
struct ElementwiseScratch {
  alignas(64) T input[kOperands][kTile], per_row[kTile], output[kOperands][kTile], terms[kTile];
};

template <class T, class Options, class Kernel>
void run_tile(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, const Tile& tile,
              ElementwiseScratch<T>& scratch, Kernel kernel) {
  const Walk walk(tile);
  Rows<const T> in[kOperands];
  Rows<T> out[kOperands];
  for (int i = 0; i < kOperands; ++i) {
    const Operand &read = plan.input[i], &written = plan.output[i];
    in[i] = {scratch.input[i], walk.length};
    if (call.input[i]) in[i] = load(read.view, call.input[i], read.dtype, tile, walk, scratch.input[i]);
    out[i] = target(written.view, call.output[i], written.dtype, tile, walk, scratch.output[i]);
  }
  for (int64_t r = 0; r < walk.rows; ++r) {
    const int64_t start = r * walk.length;
    kernel(Run<T>{{in[0][r], in[1][r], in[2][r]},
                  scratch.per_row + start,
                  {out[0][r], out[1][r], out[2][r]},
                  scratch.terms + start,
                  walk.length});
  }
  for (int i = 0; i < kOperands; ++i) {
    const Operand& written = plan.output[i];
    if (call.output[i] && out[i].data == scratch.output[i])
      store(written.view, call.output[i], written.dtype, tile, scratch.output[i]);
  }
}

// Whether every tensor holds each row, a long one, as it is: then nothing but pointers changes from row to row.
template <class T, class Options>
bool in_rows(const ElementwisePlan<Options>& plan, const ElementwiseCall& call) {
  constexpr int64_t kManyRows = 64;  // fewer do not keep all threads busy
  const int64_t* size = plan.box.size;
  if (size[0] < kManyRows || size[1] != 1 || size[2] != 1 || size[3] < kDirectRow) return false;
  const auto fits = [](const Operand& operand, const void* address) {
    return address == nullptr || (operand.dtype == kDtype<T> && operand.view.stride[3] == 1);
  };
  for (int i = 0; i < kOperands; ++i) {
    if (!fits(plan.input[i], call.input[i]) || !fits(plan.output[i], call.output[i])) return false;
  }
  return true;
}

template <class T, class Address>
T* row_of(const Operand& operand, Address* base, int64_t row) {
  return static_cast<T*>(base) + operand.view.offset + row * operand.view.stride[0];
}

// Returns the sum over the row, added up as that of tiles is.
template <class T, class Options, class Kernel>
double run_row(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, int64_t row,
               ElementwiseScratch<T>& scratch, Kernel kernel) {
  const int64_t length = plan.box.size[3];
  double total = 0;
  for (int64_t start = 0; start < length; start += kTile) {
    Run<T> run{{}, scratch.per_row, {}, scratch.terms, smaller(kTile, length - start)};
    for (int i = 0; i < kOperands; ++i) {
      const void* from = call.input[i];
      run.input[i] = from ? row_of<const T>(plan.input[i], from, row) + start : scratch.input[i];
      run.output[i] = call.output[i] ? row_of<T>(plan.output[i], call.output[i], row) + start : scratch.output[i];
    }
    kernel(run);
    if (call.sums != nullptr) total += sum(scratch.terms, run.length);
  }
  return total;
}

// `run_rows` and `run_tiles` are called by every thread of a region.
template <class T, class Options, class Kernel>
void run_rows(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, ElementwiseScratch<T>& scratch,
              Kernel kernel) {
  const int64_t rows = plan.box.size[0], length = smaller(kTile, plan.box.size[3]);
  const T* per_row = static_cast<const T*>(call.per_row);
#pragma omp for schedule(static) nowait
  for (int64_t i = 0; i < rows; ++i) {
    if (per_row != nullptr) fill(scratch.per_row, per_row[i * plan.row_stride], length);
    const double total = run_row(plan, call, i, scratch, kernel);
    if (call.sums != nullptr) static_cast<T*>(call.sums)[i] = static_cast<T>(total);
  }
}

// Sums of tiles that are parts of rows go to `partial`.
template <class T, class Options, class Kernel>
void run_tiles(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, const Tiling& tiling, double* partial,
               ElementwiseScratch<T>& scratch, Kernel kernel) {
  const int64_t tiles = tiling.count();
  const T* per_row = static_cast<const T*>(call.per_row);
#pragma omp for schedule(static) nowait
  for (int64_t i = 0; i < tiles; ++i) {
    const Tile tile = tiling.tile(i);
    if (per_row != nullptr) spread(per_row, plan.row_stride, tile, scratch.per_row);
    run_tile(plan, call, tile, scratch, kernel);
    if (partial != nullptr) {
      partial[i] = sum(scratch.terms, tile.elements());
    } else if (call.sums != nullptr) {
      sum_rows(tile, scratch.terms, static_cast<T*>(call.sums));
    }
  }
}

template <class T, class Options, class Kernel>
void run(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, Kernel kernel) {
  const Tiling tiling(plan.box);
  const int64_t tiles = tiling.count(), parts = tiling.per_row(), count = elements(plan.box);
  const bool by_rows = in_rows<T>(plan, call);
  const bool summed = call.sums != nullptr, in_parts = summed && parts > 1 && !by_rows;
  const Zeros partial(in_parts ? tiles : 0);
  T* sums = static_cast<T*>(call.sums);
  if (summed && tiles == 0) fill(sums, T(0), plan.box.size[0]);
  for (int i = 0; i < kOperands; ++i) expect_large(call.output[i], count, plan.output[i].dtype);
#pragma omp parallel if (count >= kThreadedElements)
  {
    ElementwiseScratch<T> scratch;
    const int64_t used = smaller(kTile, count);
    for (int i = 0; i < kOperands; ++i) {
      if (call.input[i] == nullptr) fill(scratch.input[i], T(0), used);
    }
    if (call.per_row == nullptr) fill(scratch.per_row, T(0), used);
    if (by_rows) {
      run_rows(plan, call, scratch, kernel);
    } else {
      run_tiles(plan, call, tiling, partial.values, scratch, kernel);
    }
  }
  if (in_parts) add_up(plan.box.size[0], parts, parts, 1, partial.values, sums);
}

// Runs Kernel<T>, made from the options, in the type that the first input is computed in.
template <template <class> class Kernel, class Options>
void run_in_its_type(const ElementwisePlan<Options>& plan, const ElementwiseCall& call) {
  if (plan.input[0].dtype == Dtype::float64) return run<double>(plan, call, Kernel<double>(plan.options));
  run<float>(plan, call, Kernel<float>(plan.options));
}

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
