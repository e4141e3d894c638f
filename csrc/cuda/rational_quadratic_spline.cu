#include "cuda/rational_quadratic_spline.cuh"
#include "cuda/rational_quadratic_spline.h"

namespace flowkernels::cuda {
namespace spline {
namespace {

constexpr int64_t kMostShared = 48 * 1024;  // of a block, which every device has without asking

View in_bytes(const View& v, int64_t size) {
  return {v.offset * size, {v.stride[0] * size, v.stride[1] * size, v.stride[2] * size, v.stride[3] * size}};
}

Tensor<const char> bytes_of(const void* base, const View& view, int64_t size) {
  return {static_cast<const char*>(base), in_bytes(view, size)};
}
Tensor<char> bytes_of(void* base, const View& view, int64_t size) {
  return {static_cast<char*>(base), in_bytes(view, size)};
}

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// Active and passive elements of a row belong to the same block.
Tiling tiling_of(const SplinePlan& p) {
  const int64_t active = p.active.per_row(), passive = p.passive.per_row(), length = std::max(active, passive);
  const int64_t columns = std::clamp<int64_t>(active, 1, kTile);
  const auto chunk = static_cast<uint32_t>(length > kLongestRow ? kChunk : length);
  const auto segments = static_cast<uint32_t>(length > kLongestRow ? (length + kChunk - 1) / kChunk : 1);
  const int64_t rows = active > kTile ? 1 : std::min(kTile / columns, kLongestRow / std::max<int64_t>(1, length));
  return {p.active.rows(),
          static_cast<uint32_t>(std::max<int64_t>(1, rows)),
          static_cast<uint32_t>(columns),
          chunk,
          segments,
          Divisor(columns),
          columns == 1 ? 0 : 1u << (bits_for(columns) - 1)};
}

Copy copy_of(const SplinePlan& p, const Tiling& tiling, const void* from, const View& from_view, void* to,
             const View& to_view) {
  const int64_t size = bytes_of(p.x_dtype), n = 16 / size;
  const Tensor<const char> source = bytes_of(from, from_view, size);
  const Tensor<char> target = bytes_of(to, to_view, size);
  const auto wide = [&](const auto& t) {
    bool aligned = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.data == nullptr || t.stride[3] == size);
    for (int d = 0; d < kDims - 1; ++d) aligned = aligned && (p.passive.size[d] <= 1 || t.stride[d] % 16 == 0);
    return aligned;
  };
  const int64_t together = p.passive.size[3] % n == 0 && wide(source) && wide(target) ? n : 1;
  const int64_t share = std::min<int64_t>(p.passive.per_row(), tiling.chunk);
  return {Event(p.passive),
          source,
          p.passive.per_row() == 0 ? Tensor<char>(nullptr, to_view) : target,
          static_cast<uint32_t>(size),
          static_cast<uint32_t>(together),
          Divisor(std::max<int64_t>(1, share / together))};
}

// Whether the numbers of the elements that a block takes at a time lie one after another.
bool are_adjacent(const SplinePlan& p, const View& view, int64_t step, const Tiling& tiling) {
  if (step != 1) return false;
  int64_t expected = parameter_count(p.options.normalization, p.options.tails, p.options.bins);
  for (int d = kDims - 1; d > 0; --d) {
    if (p.active.size[d] > 1 && view.stride[d] != expected) return false;
    expected *= p.active.size[d];
  }
  return tiling.rows_of_block == 1 || p.active.rows() <= 1 || view.stride[0] == expected;
}

// Of shared memory for the numbers of a tile, which may begin anywhere in the first 16 bytes.
template <class T>
int64_t tile_bytes(uint32_t parameters) {
  return (kTile * int64_t{parameters | 1} + 8) * static_cast<int64_t>(sizeof(T));
}

// Calls f(bins, staged): bins as a constant where there is a kernel for that many, else 0.
template <class T, class F>
void with_kernel(const Spline<T>& spline, F&& f) {
  using Staged = std::true_type;
  const size_t shared = tile_bytes<T>(spline.parameters());
  if (static_cast<int64_t>(shared) > kMostShared)
    return f(std::integral_constant<int, 0>{}, std::false_type{}, BlockShape{kTile, kTile * sizeof(T)});
  if constexpr (sizeof(T) == 4) {
    if (spline.bins == 8) return f(std::integral_constant<int, 8>{}, Staged{}, BlockShape{kTile, shared});
    if (spline.bins == 10) return f(std::integral_constant<int, 10>{}, Staged{}, BlockShape{kTile, shared});
    if (spline.bins == 16) return f(std::integral_constant<int, 16>{}, Staged{}, BlockShape{kTile, shared});
  }
  f(std::integral_constant<int, 0>{}, Staged{}, BlockShape{kTile, shared});
}

template <class T>
void forward(const SplineForwardPlan& plan, const SplineForwardCall& call, void* workspace, void* stream) {
  const SplinePlan& p = plan.common;
  const int64_t size = bytes_of(p.x_dtype), raw_size = bytes_of(p.raw_dtype);
  const Spline<T> spline(p.options);
  const Tiling tiling = tiling_of(p);
  const bool whole_rows = tiling.segments == 1;
  const ForwardArguments<T> a{spline,
                              tiling,
                              Event(p.active),
                              Divisor(spline.parameters()),
                              p.x_dtype,
                              bytes_of(call.x, plan.x, size),
                              {bytes_of(call.raw, p.raw, raw_size), p.raw_step * raw_size, p.raw_dtype,
                               are_adjacent(p, p.raw, p.raw_step, tiling)},
                              {static_cast<const uint8_t*>(call.mask), p.mask},
                              bytes_of(call.y, plan.y, size),
                              static_cast<T*>(whole_rows ? call.log_det : workspace),
                              copy_of(p, tiling, call.x, plan.x_passive, call.y, plan.y_passive)};
  with_kernel(spline, [&](auto bins, auto staged, BlockShape shape) {
    launch("spline_forward", forward_kernel<T, bins.value, staged.value>, tiling.blocks(), a, stream, shape);
  });
  if (!whole_rows) sum_rows<T>(workspace, call.log_det, tiling.rows, tiling.segments, stream);
}

template <class T>
void backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call, void* stream) {
  const SplinePlan& p = plan.common;
  const int64_t size = bytes_of(p.x_dtype), raw_size = bytes_of(p.raw_dtype);
  const Spline<T> spline(p.options);
  const Tiling tiling = tiling_of(p);
  const BackwardArguments<T> a{spline,
                               tiling,
                               Event(p.active),
                               Divisor(spline.parameters()),
                               p.x_dtype,
                               bytes_of(call.grad_y, plan.grad_y, size),
                               bytes_of(call.saved, plan.saved, size),
                               static_cast<const T*>(call.grad_log_det),
                               plan.grad_log_det_stride,
                               {bytes_of(call.raw, p.raw, raw_size), p.raw_step * raw_size, p.raw_dtype,
                                are_adjacent(p, p.raw, p.raw_step, tiling)},
                               {static_cast<const uint8_t*>(call.mask), p.mask},
                               bytes_of(call.grad_x, plan.grad_x, size),
                               {bytes_of(call.grad_raw, plan.grad_raw, raw_size), plan.grad_raw_step * raw_size,
                                p.raw_dtype, are_adjacent(p, plan.grad_raw, plan.grad_raw_step, tiling)},
                               copy_of(p, tiling, call.grad_y, plan.grad_y_passive, call.grad_x, plan.grad_x_passive)};
  const bool nothing = p.active.per_row() == 0 && p.passive.per_row() == 0;
  with_kernel(spline, [&](auto bins, auto staged, BlockShape shape) {
    launch("spline_backward", backward_kernel<T, bins.value, staged.value>, nothing ? 0 : tiling.blocks(), a, stream,
           shape);
  });
}

}  // namespace
}  // namespace spline

size_t spline_forward_workspace(const SplineForwardPlan& plan) {
  const spline::Tiling tiling = spline::tiling_of(plan.common);
  const size_t size = plan.common.x_dtype == Dtype::float64 ? 8 : 4;
  return tiling.segments == 1 ? 0 : tiling.rows * tiling.segments * size;
}

void spline_forward(const SplineForwardPlan& plan, const SplineForwardCall& call, void* workspace, int device,
                    void* stream) {
  const CurrentDevice current(device);
  if (plan.common.x_dtype == Dtype::float64)
    spline::forward<double>(plan, call, workspace, stream);
  else
    spline::forward<float>(plan, call, workspace, stream);
}

void spline_backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call, int device, void* stream) {
  const CurrentDevice current(device);
  if (plan.common.x_dtype == Dtype::float64)
    spline::backward<double>(plan, call, stream);
  else
    spline::backward<float>(plan, call, stream);
}

}  // namespace flowkernels::cuda
