// What the launchers of planar and radial flows decide on the host.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/dispatch.cuh"
#include "cuda/stack.cuh"
#include "cuda/stack.h"

namespace flowkernels::cuda {
namespace stack {

constexpr int64_t kMostPartials = 256;  // sums of blocks, whatever the device
constexpr int64_t kWorkspaceLimit = int64_t{64} << 20;
constexpr int64_t kTableBytes = 48 * 1024;  // of parameters that every block reads to find the numbers of all layers

// Which threads share a row, and how many of its features each has: a thread, lanes of 8, or a block.
struct Mapping {
  uint32_t lane_bits;
  int per_lane;

  explicit Mapping(int64_t features) {
    if (features > 16 * kThreads)
      throw std::length_error("a row has " + std::to_string(features) + " features; kernels take 4096");
    const bool block = features > 256;
    lane_bits = block ? kBlockBits : bits_for((features + kMostOfWarp - 1) / kMostOfWarp);
    const int64_t least = (features + (int64_t{1} << lane_bits) - 1) >> lane_bits;
    per_lane = std::max(block ? 4 : 2, 1 << bits_for(least));
  }
};

// What only one of the ops has: the class Op<T, n> of the device, its constants, the kernel that ends a backward pass,
// and perhaps one that finds a table first.
template <class Options>
struct Family;

// Calls f with the op's class for the type and the number of features of a thread.
template <class Options, class F>
void with_op(const StackPlan& plan, F&& f) {
  const auto with_type = [&](auto n) {
    if (plan.x_dtype == Dtype::float64) return f(Type<typename Family<Options>::template Op<double, n.value>>{});
    f(Type<typename Family<Options>::template Op<float, n.value>>{});
  };
  switch (Mapping(plan.features).per_lane) {
    case 2:
      return with_type(std::integral_constant<int, 2>{});
    case 4:
      return with_type(std::integral_constant<int, 4>{});
    case 8:
      return with_type(std::integral_constant<int, 8>{});
    default:
      return with_type(std::integral_constant<int, 16>{});
  }
}

// How a workspace is divided, in numbers: the table, the records of each block, its partial sums.
struct Layout {
  int64_t table, record_length = 0, partial_length = 0, tiles = 0, blocks = 0;

  int64_t records() const { return (table + 3) / 4 * 4; }
  int64_t partials() const { return records() + blocks * record_length; }
};

template <class Op>
Layout forward_layout(const StackPlan& p) {
  const bool many = 2 * p.depth * p.features * int64_t{sizeof(float)} > kTableBytes || p.depth > kTableDepth;
  return {!p.per_example && p.rows > 0 && many ? Op::kTable * p.depth : 0};
}

template <class Op, class Options>
Layout backward_layout(const StackBackwardPlan<Options>& plan) {
  const StackPlan& p = plan.common;
  const int64_t together = kThreads >> Mapping(p.features).lane_bits;
  Layout layout = forward_layout<Op>(p);
  if (!p.inverse) layout.record_length = Records<Op>::length(p.depth);
  const bool sums = plan.of_parameters && !p.per_example;
  if (sums) layout.partial_length = (Op::kVectors * p.features + Op::kNumbers + 3) / 4 * 4;  // keeps layers aligned
  const int64_t bytes = (layout.record_length + p.depth * layout.partial_length) * int64_t{sizeof(typename Op::Number)};
  layout.tiles = (p.rows + together - 1) / together;
  layout.blocks = std::min(layout.tiles, std::max<int64_t>(1, kWorkspaceLimit / std::max<int64_t>(1, bytes)));
  if (sums) layout.blocks = std::min(layout.blocks, kMostPartials);
  return layout;
}

inline bool aligned(const void* data, int64_t row_bytes, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && row_bytes % bytes == 0;
}

// Of a tensor like x; `width` neighbours make an access.
template <class Void>
Matrix<Void> matrix(const StackPlan& p, int width, Void* data, int64_t row_stride, int64_t column_stride) {
  const int64_t size = p.x_dtype == Dtype::float64 ? 8 : p.x_dtype == Dtype::float32 ? 4 : 2;
  const bool wide = p.features % width == 0 && column_stride == 1 && aligned(data, row_stride * size, width * size);
  return {data, row_stride, column_stride, p.x_dtype, wide};
}

template <class Op>
Stack<typename Op::Number> stack_of(const StackPlan& p, const void* const* parameters, const void* table) {
  using T = typename Op::Number;
  constexpr int width = Lane<T, Op::kPerLane>::kWidth;
  Stack<T> stack{};
  stack.rows = p.rows;
  stack.features = static_cast<uint32_t>(p.features);
  stack.lane_bits = Mapping(p.features).lane_bits;
  stack.depth = static_cast<int32_t>(p.depth);
  stack.per_example = p.per_example;
  stack.inverse = p.inverse;
  stack.wide = p.features % width == 0;
  for (int i = 0; i < kStackParameters; ++i) {
    stack.parameters[i] = static_cast<const T*>(parameters[i]);
    stack.strides[i] = p.parameter_strides[i];
    if (i < Op::kVectors)
      stack.wide = stack.wide && aligned(parameters[i], p.parameter_strides[i] * sizeof(T), width * sizeof(T));
  }
  stack.table = static_cast<const T*>(table);
  return stack;
}

// Before a kernel with arguments `a`, if it reads a table.
template <class Options, class Op, template <class> class Arguments>
void fill_table(const Arguments<Op>& a, void* table, void* stream) {
  if constexpr (Op::kTable > 0) {
    if (table == nullptr) return;
    const TableArguments<Op> of_table{a.stack, a.constants, static_cast<typename Op::Number*>(table)};
    launch(Family<Options>::kTable, table_kernel<Op>, a.stack.tiles(a.stack.depth), of_table, stream);
  }
}

template <class Op, class Options>
void forward(const StackForwardPlan<Options>& plan, const StackForwardCall& call, void* workspace, void* stream) {
  const StackPlan& p = plan.common;
  constexpr int width = Lane<typename Op::Number, Op::kPerLane>::kWidth;
  void* const table = forward_layout<Op>(p).table > 0 ? workspace : nullptr;
  const ForwardArguments<Op> a{
      stack_of<Op>(p, call.parameters, table), Family<Options>::template constants<typename Op::Number>(plan.options),
      matrix(p, width, call.x, plan.x_strides[0], plan.x_strides[1]), matrix(p, width, call.y, p.features, 1),
      static_cast<typename Op::Number*>(call.log_det)};
  fill_table<Options, Op>(a, table, stream);
  launch(Family<Options>::kForward, forward_kernel<Op>, a.stack.tiles(p.rows), a, stream);
}

template <class Op, class Options>
void finish(const StackBackwardPlan<Options>& plan, const StackBackwardCall& call, const BackwardArguments<Op>& a,
            void* stream) {
  using T = typename Op::Number;
  FinishArguments<T> f{a.partials, a.blocks, a.partial_length, a.stack.depth, a.stack.features, {}, {}};
  for (int i = 0; i < kStackParameters; ++i) {
    f.parameters[i] = static_cast<const T*>(call.parameters[i]);
    f.grads[i] = static_cast<T*>(call.grad_parameters[i]);
  }
  using Finish = typename Family<Options>::template Finish<T>;
  launch(Family<Options>::kFinish, finish_kernel<Finish>, plan.common.depth, f, stream);
}

template <class Op, class Options>
void backward(const StackBackwardPlan<Options>& plan, const StackBackwardCall& call, void* workspace, void* stream) {
  using T = typename Op::Number;
  constexpr int width = Lane<T, Op::kPerLane>::kWidth;
  const StackPlan& p = plan.common;
  const Layout layout = backward_layout<Op>(plan);
  T* const memory = static_cast<T*>(workspace);
  T* const table = layout.table > 0 ? memory : nullptr;
  BackwardArguments<Op> a{stack_of<Op>(p, call.parameters, table),
                          Family<Options>::template constants<T>(plan.options),
                          matrix(p, width, call.grad_y, plan.grad_y_strides[0], plan.grad_y_strides[1]),
                          matrix(p, width, call.saved, plan.saved_strides[0], plan.saved_strides[1]),
                          matrix(p, width, call.grad_x, p.features, 1),
                          static_cast<const T*>(call.grad_log_det),
                          plan.grad_log_det_stride,
                          plan.of_parameters,
                          {},
                          memory + layout.partials(),
                          memory + layout.records(),
                          layout.partial_length,
                          layout.record_length,
                          layout.tiles,
                          layout.blocks};
  for (int i = 0; i < kStackParameters; ++i) {
    a.grads[i] = static_cast<T*>(call.grad_parameters[i]);
    if (i < Op::kVectors) a.stack.wide = a.stack.wide && aligned(a.grads[i], 0, width * sizeof(T));
  }
  fill_table<Options, Op>(a, table, stream);
  launch(Family<Options>::kBackward, backward_kernel<Op>, layout.blocks, a, stream);
  if (plan.of_parameters && !p.per_example) finish<Op>(plan, call, a, stream);
}

}  // namespace stack

template <class Options>
size_t StackLaunchers<Options>::forward_workspace(const StackForwardPlan<Options>& plan) {
  size_t bytes = 0;
  stack::with_op<Options>(plan.common, [&](auto op) {
    using Op = typename decltype(op)::type;
    bytes = stack::forward_layout<Op>(plan.common).table * sizeof(typename Op::Number);
  });
  return bytes;
}

template <class Options>
size_t StackLaunchers<Options>::backward_workspace(const StackBackwardPlan<Options>& plan) {
  size_t bytes = 0;
  stack::with_op<Options>(plan.common, [&](auto op) {
    using Op = typename decltype(op)::type;
    const stack::Layout layout = stack::backward_layout<Op>(plan);
    const int64_t partials = layout.blocks * plan.common.depth * layout.partial_length;
    bytes = (layout.partials() + partials) * sizeof(typename Op::Number);
  });
  return bytes;
}

template <class Options>
void StackLaunchers<Options>::forward(const StackForwardPlan<Options>& plan, const StackForwardCall& call,
                                      void* workspace, int device, void* stream) {
  const CurrentDevice current(device);
  stack::with_op<Options>(plan.common,
                          [&](auto op) { stack::forward<typename decltype(op)::type>(plan, call, workspace, stream); });
}

template <class Options>
void StackLaunchers<Options>::backward(const StackBackwardPlan<Options>& plan, const StackBackwardCall& call,
                                       void* workspace, int device, void* stream) {
  const CurrentDevice current(device);
  stack::with_op<Options>(
      plan.common, [&](auto op) { stack::backward<typename decltype(op)::type>(plan, call, workspace, stream); });
}

}  // namespace flowkernels::cuda
