#include "cuda/affine_coupling.cuh"
#include "cuda/affine_coupling.h"
#include "cuda/dispatch.cuh"

namespace flowkernels::cuda {
namespace affine {
namespace {

constexpr int64_t kBoundChunk = 2048;  // elements of a channel that a block sums: there may be few channels
constexpr int64_t kWorkspaceLimit = int64_t{64} << 20;

// Active and passive elements of a row are walked by the same threads.
Mapping map_batch(const AffinePlan& plan, int width) {
  const int64_t length = std::max(plan.active.per_row(), plan.passive.per_row());
  return map_rows(plan.active.rows(), length, width);
}

template <class X>
Copy<X> copy_of(const Extent& box, Tensor<const X> from, Tensor<X> to) {
  constexpr int n = 16 / sizeof(X);
  const bool wide = box.size[3] % n == 0 && fits(from, box, n) && fits(to, box, n);
  return {{}, Event(box), from, to, 0, wide};
}

// How the bound's gradient is summed: the channels are made the rows of the box, and the batch a dimension of its
// event. Where channels are neighbours in memory, threads lie across them, else along a channel.
class BoundSum {
 public:
  const int64_t channels;

  explicit BoundSum(const AffinePlan& plan) : channels(std::max<int64_t>(1, plan.channels)), rows_(channels) {
    const Extent& box = plan.active;
    if (box.per_row() == 0) return;
    int channel = 1;  // for one value that all share, any dimension will do
    for (int d = 1; d < kDims; ++d)
      if (box.size[d] > 1 && plan.bound_view.stride[d] != 0) channel = d;
    if (channels > 1 && channels != box.size[channel]) throw std::invalid_argument("bound: not one value per channel");
    int next = 0;
    dims_[next++] = channel;
    for (const bool longer : {false, true})  // those of size 1 first, because threads lie along the last
      for (int d = 0; d < kDims; ++d)
        if (d != channel && (box.size[d] > 1) == longer) dims_[next++] = d;
    rows_ = box.size[channel];
    length_ = reordered(box).per_row();
    if (channel == kDims - 1 && channels > 1) column_bits_ = std::min(5u, bits_for(rows_));
    if (is_across()) chunk_ = int64_t{16} * (kThreads >> column_bits_);
    while (chunk_ < length_ && partial_sums() * int64_t{sizeof(double)} > kWorkspaceLimit) chunk_ *= 2;
  }

  Extent reordered(const Extent& e) const {
    return {e.size[dims_[0]], e.size[dims_[1]], e.size[dims_[2]], e.size[dims_[3]]};
  }
  View reordered(const View& v) const {
    return {v.offset, {v.stride[dims_[0]], v.stride[dims_[1]], v.stride[dims_[2]], v.stride[dims_[3]]}};
  }

  bool is_across() const { return column_bits_ > 0; }

  Mapping mapping(int width) const {
    if (!is_across()) return map_rows(rows_, length_, width, kBoundChunk, chunk_);
    return {rows_, static_cast<uint32_t>(chunk_), static_cast<uint32_t>(segments()), bits_for(kThreads) - column_bits_,
            column_bits_};
  }

  // The sums of segments are summed again where a channel has several.
  int64_t partial_sums() const { return rows_ * segments(); }
  bool needs_second_sum() const { return partial_sums() != channels; }

 private:
  int64_t segments() const { return std::max<int64_t>(1, (length_ + chunk_ - 1) / chunk_); }

  int dims_[kDims] = {1, 0, 2, 3};  // of the plan's box, in the order of the new one
  int64_t rows_, length_ = 0, chunk_ = kBoundChunk;
  uint32_t column_bits_ = 0;
};

template <class X, class R>
void forward(const AffineForwardPlan& plan, const AffineForwardCall& call, void* workspace, void* stream) {
  using T = Accumulation<X>;
  const AffinePlan& p = plan.common;
  const X* const from = static_cast<const X*>(call.x);
  X* const to = static_cast<X*>(call.y);
  ForwardArguments<X, R> a{Scale<T>(p),
                           {},
                           Event(p.active),
                           {from, plan.x},
                           {static_cast<const R*>(call.scale), p.scale},
                           {static_cast<const R*>(call.shift), plan.shift},
                           {static_cast<const uint8_t*>(call.mask), p.mask},
                           {static_cast<const T*>(call.bound), p.bound_view},
                           {to, plan.y},
                           static_cast<T*>(call.log_det),
                           copy_of<X>(p.passive, {from, plan.x_passive}, {to, plan.y_passive})};
  constexpr int n = kNeighbours<X, R>;
  const bool wide = p.active.size[3] % n == 0 && fits(a.x, p.active, n) && fits(a.scale, p.active, n) &&
                    fits(a.shift, p.active, n) && fits(a.y, p.active, n) && fits_or_constant(a.mask, p.active, n);
  a.mapping = a.passive.mapping = map_batch(p, wide ? n : Scattered::width);
  const bool whole_rows = a.mapping.segments == 1;
  if (!whole_rows) a.sums = static_cast<T*>(workspace);
  const auto kernel = wide ? forward_kernel<X, R, Neighbours<n>> : forward_kernel<X, R, Scattered>;
  launch("affine_forward", kernel, a.mapping.blocks(), a, stream);
  if (!whole_rows) sum_rows<T>(workspace, call.log_det, p.active.rows(), a.mapping.segments, stream);
}

template <class X, class R>
BackwardArguments<X, R> backward_arguments(const AffineBackwardPlan& plan, const AffineBackwardCall& call,
                                           const BoundSum* order) {
  using T = Accumulation<X>;
  const AffinePlan& p = plan.common;
  const auto over = [&](const View& v) { return order ? order->reordered(v) : v; };
  const X* const grad_y = static_cast<const X*>(call.grad_y);
  X* const grad_x = static_cast<X*>(call.grad_x);
  const bool of_scale = call.grad_scale != nullptr || call.grad_bound != nullptr;  // else neither of two is read
  const View grad_log_det{0, {plan.grad_log_det_stride, 0, 0, 0}};
  return {Scale<T>(p),
          {},
          0,
          Event(order ? order->reordered(p.active) : p.active),
          {grad_y, over(plan.grad_y)},
          {of_scale ? static_cast<const X*>(call.saved) : nullptr, over(plan.saved)},
          {of_scale ? static_cast<const T*>(call.grad_log_det) : nullptr, over(grad_log_det)},
          {static_cast<const R*>(call.scale), over(p.scale)},
          {static_cast<const uint8_t*>(call.mask), over(p.mask)},
          {static_cast<const T*>(call.bound), over(p.bound_view)},
          {grad_x, over(plan.grad_x)},
          {static_cast<R*>(call.grad_scale), over(plan.grad_scale)},
          {static_cast<R*>(call.grad_shift), over(plan.grad_shift)},
          nullptr,
          copy_of<X>(p.passive, {grad_y, plan.grad_y_passive}, {grad_x, plan.grad_x_passive})};
}

template <class X, class R>
bool can_be_wide(const BackwardArguments<X, R>& a, const Extent& box) {
  constexpr int n = kNeighbours<X, R>;
  return box.size[3] % n == 0 && fits(a.grad_y, box, n) && fits(a.saved, box, n) && fits(a.scale, box, n) &&
         fits(a.grad_x, box, n) && fits(a.grad_scale, box, n) && fits(a.grad_shift, box, n) &&
         fits_or_constant(a.mask, box, n) && a.grad_log_det.stride[3] == 0;
}

template <class X, class R>
void launch_backward(BackwardArguments<X, R>& a, bool wide, int64_t blocks, void* stream) {
  constexpr int n = kNeighbours<X, R>;
  const auto kernel = wide ? backward_kernel<X, R, Neighbours<n>> : backward_kernel<X, R, Scattered>;
  launch("affine_backward", kernel, blocks, a, stream);
}

template <class X, class R>
void backward_by_rows(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void* stream) {
  const AffinePlan& p = plan.common;
  auto a = backward_arguments<X, R>(plan, call, nullptr);
  const bool wide = can_be_wide(a, p.active);
  a.mapping = a.passive.mapping = map_batch(p, wide ? kNeighbours<X, R> : Scattered::width);
  const bool nothing = p.active.per_row() == 0 && p.passive.per_row() == 0;
  const int64_t blocks = nothing ? 0 : a.mapping.blocks();
  a.blocks = static_cast<uint32_t>(blocks);
  launch_backward(a, wide, blocks, stream);
}

template <class X, class R>
void backward_by_channels(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void* workspace,
                          void* stream) {
  using T = Accumulation<X>;
  const AffinePlan& p = plan.common;
  const BoundSum sum(p);
  auto a = backward_arguments<X, R>(plan, call, &sum);
  const bool wide = !sum.is_across() && can_be_wide(a, sum.reordered(p.active));
  a.mapping = sum.mapping(wide ? kNeighbours<X, R> : Scattered::width);
  a.sums = static_cast<T*>(sum.needs_second_sum() ? workspace : call.grad_bound);
  a.passive.mapping = map_rows(p.passive.rows(), p.passive.per_row(), Scattered::width);
  const int64_t active_blocks = a.mapping.blocks();
  const int64_t passive_blocks = p.passive.per_row() == 0 ? 0 : a.passive.mapping.blocks();
  a.blocks = a.passive.first_block = static_cast<uint32_t>(active_blocks);
  launch_backward(a, wide, active_blocks + passive_blocks, stream);
  if (sum.needs_second_sum())
    sum_rows<T>(workspace, call.grad_bound, sum.channels, sum.partial_sums() / sum.channels, stream);
}

size_t accumulation_bytes(const AffinePlan& plan) { return plan.x_dtype == Dtype::float64 ? 8 : 4; }

}  // namespace
}  // namespace affine

size_t affine_coupling_forward_workspace(const AffineForwardPlan& plan) {
  const Mapping mapping = affine::map_batch(plan.common, Scattered::width);
  return mapping.segments == 1 ? 0 : mapping.rows * mapping.segments * affine::accumulation_bytes(plan.common);
}

size_t affine_coupling_backward_workspace(const AffineBackwardPlan& plan) {
  if (!plan.common.has_bound_tensor || plan.common.channels == 0) return 0;
  const affine::BoundSum sum(plan.common);
  return sum.needs_second_sum() ? sum.partial_sums() * affine::accumulation_bytes(plan.common) : 0;
}

void affine_coupling_forward(const AffineForwardPlan& plan, const AffineForwardCall& call, void* workspace, int device,
                             void* stream) {
  const CurrentDevice current(device);
  with_types(plan.common.x_dtype, plan.common.raw_dtype, [&](auto x, auto raw) {
    affine::forward<typename decltype(x)::type, typename decltype(raw)::type>(plan, call, workspace, stream);
  });
}

void affine_coupling_backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void* workspace,
                              int device, void* stream) {
  const CurrentDevice current(device);
  with_types(plan.common.x_dtype, plan.common.raw_dtype, [&](auto x, auto raw) {
    using X = typename decltype(x)::type;
    using R = typename decltype(raw)::type;
    if (call.grad_bound == nullptr)
      affine::backward_by_rows<X, R>(plan, call, stream);
    else
      affine::backward_by_channels<X, R>(plan, call, workspace, stream);
  });
}

}  // namespace flowkernels::cuda
