// Elementwise ops: one kernel walks the rows for all of them. A class `Op` says what an op reads and writes, and its
// `Formula` is the op of one element.
#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/elementwise.h"
#include "cuda/reduce.cuh"

namespace flowkernels::cuda {
namespace elementwise {

// How many blocks have to fit a multiprocessor, which bounds the registers: 64 and 128 of them.
template <class X>
constexpr int kBlocks = sizeof(X) == 8 ? 2 : 4;

// What a formula reads, 0 where it is absent, and what it finds.
template <class T>
struct Element {
  T input[kOperands], per_row;
  T output[kOperands] = {}, term = T(0);
};

// The first input holds X, the others and their gradients S.
template <class Op, class X, class S>
struct Arguments {
  using T = Accumulation<X>;
  using Y = typename Op::template Output<X, S>;
  typename Op::template Formula<T> formula;
  Mapping mapping;
  Event event;
  Tensor<const X> input;
  Tensor<const S> others[kOperands - 1];
  Tensor<Y> output;
  Tensor<S> other_outputs[kOperands - 1];
  const T* per_row;
  int64_t row_stride;
  T* sums;  // one per segment
};

// Returns the elements' part of the row's sum.
template <class Op, class X, class S, class Elements>
FK_INLINE Accumulation<X> map_elements(const Arguments<Op, X, S>& a, const Elements& at, Accumulation<X> per_row) {
  using T = Accumulation<X>;
  using Y = typename Arguments<Op, X, S>::Y;
  constexpr int n = Elements::width;
  Pack<X, n> input = at.load(a.input);
  Pack<Y, n> output{};
  Pack<S, n> others[kOperands - 1]{};  // become the outputs of the same places
#pragma unroll
  for (int i = 0; i < Op::kInputs - 1; ++i)
    if (a.others[i].data) others[i] = at.load(a.others[i]);
  T sum = T(0);
#pragma unroll
  for (int pair = 0; pair < n / 2; ++pair) {
    const Pair<X> x = input.take();
    Pair<Y> y;
    Pair<S> second = others[0].take(), third = others[1].take();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Element<T> e{{widen<T>(x.value[j]), widen<T>(second.value[j]), widen<T>(third.value[j])}, per_row};
      a.formula(e);
      y.value[j] = narrow<Y>(e.output[0]);
      second.value[j] = narrow<S>(e.output[1]);
      third.value[j] = narrow<S>(e.output[2]);
      if (at.has(j)) sum += e.term;
    }
    output.take();
    output.put(y);
    others[0].put(second);
    others[1].put(third);
  }
  if (Op::kOutputs > 0 && a.output.data) at.store(a.output, output);
#pragma unroll
  for (int i = 0; i < Op::kOutputs - 1; ++i)
    if (a.other_outputs[i].data) at.store(a.other_outputs[i], others[i]);
  return sum;
}

template <class Op, class X, class S, class Elements>
__global__ void __launch_bounds__(kThreads, kBlocks<X>) map_kernel(const __grid_constant__ Arguments<Op, X, S> a) {
  using T = Accumulation<X>;
  const Segment s = a.mapping.segment(blockIdx.x, a.event);
  T sum = T(0), per_row = T(0);
  if (a.per_row && s.count > 0) per_row = load(a.per_row + s.row * a.row_stride);
#pragma unroll 1
  for (uint32_t i = Elements::first(s); i < s.count; i += s.lanes * Elements::width)
    sum += map_elements(a, Elements(s, i), per_row);
  if constexpr (Op::kSums) {
    sum = sum_lanes(sum, a.mapping);
    if (s.first_lane) store(a.sums + s.number, sum);
  }
}

template <class S>
Tensor<const S> tensor(const void* base, const Operand& operand) {
  return {static_cast<const S*>(base), operand.view};
}
template <class S>
Tensor<S> tensor(void* base, const Operand& operand) {
  return {static_cast<S*>(base), operand.view};
}

template <class Op, class X, class S, class Options>
void launch(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, void* workspace, void* stream) {
  using T = Accumulation<X>;
  const Extent& box = plan.box;
  Arguments<Op, X, S> a{typename Op::template Formula<T>(plan.options, call),
                        {},
                        Event(box),
                        tensor<X>(call.input[0], plan.input[0]),
                        {tensor<S>(call.input[1], plan.input[1]), tensor<S>(call.input[2], plan.input[2])},
                        tensor<typename Op::template Output<X, S>>(call.output[0], plan.output[0]),
                        {tensor<S>(call.output[1], plan.output[1]), tensor<S>(call.output[2], plan.output[2])},
                        static_cast<const T*>(call.per_row),
                        plan.row_stride,
                        static_cast<T*>(call.sums)};
  constexpr int n = kNeighbours<X, S>;
  bool wide = box.size[3] % n == 0 && fits(a.input, box, n) && fits(a.output, box, n);
  for (int i = 0; i < kOperands - 1; ++i) wide = wide && fits(a.others[i], box, n) && fits(a.other_outputs[i], box, n);
  a.mapping = map_rows(box.rows(), box.per_row(), wide ? n : Scattered::width);
  const bool in_parts = Op::kSums && a.mapping.segments > 1, nothing = !Op::kSums && box.per_row() == 0;
  if (in_parts) a.sums = static_cast<T*>(workspace);
  const auto kernel = wide ? map_kernel<Op, X, S, Neighbours<n>> : map_kernel<Op, X, S, Scattered>;
  cuda::launch(Op::kName, kernel, nothing ? 0 : a.mapping.blocks(), a, stream);
  if (in_parts) sum_rows<T>(workspace, call.sums, box.rows(), a.mapping.segments, stream);
}

}  // namespace elementwise

template <class Op, class Options>
size_t ElementwiseLauncher<Op, Options>::workspace(const ElementwisePlan<Options>& plan) {
  if (!Op::kSums) return 0;
  const Mapping mapping = map_rows(plan.box.rows(), plan.box.per_row(), Scattered::width);
  const size_t size = plan.input[0].dtype == Dtype::float64 ? 8 : 4;
  return mapping.segments == 1 ? 0 : mapping.rows * mapping.segments * size;
}

template <class Op, class Options>
void ElementwiseLauncher<Op, Options>::launch(const ElementwisePlan<Options>& plan, const ElementwiseCall& call,
                                              void* workspace, int device, void* stream) {
  const CurrentDevice current(device);
  Op::with_storage(plan, call, [&](auto x, auto s) {
    using X = typename decltype(x)::type;
    elementwise::launch<Op, X, typename decltype(s)::type>(plan, call, workspace, stream);
  });
}

}  // namespace flowkernels::cuda
