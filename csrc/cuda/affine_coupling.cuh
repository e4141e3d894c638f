// The kernels of affine coupling.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"
#include "flow/affine_coupling.h"

namespace flowkernels::cuda::affine {

// How many blocks have to fit a multiprocessor, which bounds the registers: 64, 80 and 255 of them. Fewer would spill.
template <class X, class Elements>
constexpr int kForwardBlocks = sizeof(X) == 8 ? 1 : 4;
template <class X, class Elements>
constexpr int kBackwardBlocks = sizeof(X) == 8 ? 1 : (Elements::width == 4 ? 4 : 3);

// One call in its accumulation type: what both directions need to know about the scale map.
template <class T>
struct Scale {
  ScaleMap map;
  bool divide, shift_first;
  AffineConstants<T> constants;
  T bound, inverse_bound;  // where the bound is no tensor

  explicit Scale(const AffinePlan& p)
      : map(p.map),
        divide(p.divide),
        shift_first(p.shift_first),
        constants(affine_constants<T>(p)),
        bound(static_cast<T>(p.bound)),
        inverse_bound(static_cast<T>(1 / p.bound)) {}
};

// The elements beside the active ones, which the blocks from `first_block` copy.
template <class X>
struct Copy {
  Mapping mapping;
  Event event;
  Tensor<const X> from;  // zeros where null
  Tensor<X> to;
  uint32_t first_block;
  bool wide;
};

template <class X, class R>
struct ForwardArguments {
  using T = Accumulation<X>;
  Scale<T> scale_map;
  Mapping mapping;
  Event event;
  Tensor<const X> x;
  Tensor<const R> scale, shift;
  Tensor<const uint8_t> mask;
  Tensor<const T> bound;
  Tensor<X> y;
  T* sums;  // one per segment: log_det, or the workspace
  Copy<X> passive;
};

// With a gradient of the bound, the rows of the mapping are channels, and the batch is a dimension of the event.
template <class X, class R>
struct BackwardArguments {
  using T = Accumulation<X>;
  Scale<T> scale_map;
  Mapping mapping;
  uint32_t blocks;
  Event event;
  Tensor<const X> grad_y, saved;
  Tensor<const T> grad_log_det;
  Tensor<const R> scale;
  Tensor<const uint8_t> mask;
  Tensor<const T> bound;
  Tensor<X> grad_x;
  Tensor<R> grad_scale, grad_shift;
  T* sums;  // of the bound's gradient, one per segment; null where it is not wanted
  Copy<X> passive;
};

template <class Elements, class X>
FK_INLINE void copy_elements(const Copy<X>& c, const Segment& s) {
#pragma unroll 1
  for (uint32_t i = Elements::first(s); i < s.count; i += s.lanes * Elements::width) {
    const Elements at(s, i);
    Pack<X, Elements::width> values{};
    if (c.from.data) values = at.load(c.from);
    at.store(c.to, values);
  }
}

template <class X>
FK_INLINE void copy_passive(const Copy<X>& c) {
  if (c.to.data == nullptr || blockIdx.x < c.first_block) return;
  const Segment s = c.mapping.segment(blockIdx.x - c.first_block, c.event);
  if (c.wide)
    copy_elements<Neighbours<16 / sizeof(X)>>(c, s);
  else
    copy_elements<Scattered>(c, s);
}

template <class T>
struct Bounds {
  Pair<T> c, inverse;
};

template <ScaleMap map, class T, class Elements>
FK_INLINE Bounds<T> load_bounds(const Scale<T>& scale, const Tensor<const T>& tensor, const Elements& at, int pair) {
  if constexpr (has_bound(map)) {
    if (tensor.data) {
      const Pair<T> c = at.load_pair(tensor, pair);
      return {c, {{T(1) / c.value[0], T(1) / c.value[1]}}};
    }
  }
  return {{{scale.bound, scale.bound}}, {{scale.inverse_bound, scale.inverse_bound}}};
}

// Returns the elements' part of the log-determinant.
template <class Elements, class X, class R>
FK_INLINE Accumulation<X> forward_elements(const ForwardArguments<X, R>& a, const Elements& at) {
  using T = Accumulation<X>;
  constexpr int n = Elements::width;
  const auto& k = a.scale_map;
  Pack<X, n> x = at.load(a.x);  // becomes y
  Pack<R, n> scale{}, shift = at.load(a.shift);
  if (a.scale.data) scale = at.load(a.scale);
  uint64_t kept = a.mask.data ? at.load_mask(a.mask) : 0;
  T sum = T(0);
  with_map(k.map, [&](auto map) {
#pragma unroll 1
    for (int pair = 0; pair < n / 2; ++pair, kept >>= 16) {
      const Bounds<T> bounds = load_bounds<map.value>(k, a.bound, at, pair);
      const Pair<X> z = x.take();
      const Pair<R> s = scale.take(), t = shift.take();
      Pair<X> y;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const AffineOutput<T> out =
            affine_forward<map.value>(widen<T>(z.value[j]), widen<T>(s.value[j]), widen<T>(t.value[j]),
                                      bounds.c.value[j], bounds.inverse.value[j], k.constants, k.divide, k.shift_first);
        const bool keep = kept >> (8 * j) & 1;
        y.value[j] = keep ? z.value[j] : narrow<X>(out.y);
        sum += keep || !at.has(j) ? T(0) : out.log_m;
      }
      x.put(y);
    }
  });
  at.store(a.y, x);
  return sum;
}

template <class X, class R, class Elements>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<X, Elements>)
    forward_kernel(const __grid_constant__ ForwardArguments<X, R> a) {
  using T = Accumulation<X>;
  const Segment s = a.mapping.segment(blockIdx.x, a.event);
  T sum = T(0);
#pragma unroll 1
  for (uint32_t i = Elements::first(s); i < s.count; i += s.lanes * Elements::width)
    sum += forward_elements(a, Elements(s, i));
  copy_passive(a.passive);
  sum = sum_lanes(sum, a.mapping);
  if (s.first_lane) store(a.sums + s.number, sum);
}

// Returns the elements' part of the bound's gradient.
template <class Elements, class X, class R>
FK_INLINE Accumulation<X> backward_elements(const BackwardArguments<X, R>& a, const Elements& at) {
  using T = Accumulation<X>;
  constexpr int n = Elements::width;
  const auto& k = a.scale_map;
  Pack<X, n> grad_y{}, saved{};      // the first becomes the gradient of x,
  Pack<R, n> scale{}, grad_shift{};  // and this that of the scale
  Pair<T> grad_log_det{};
  if (a.grad_y.data) grad_y = at.load(a.grad_y);
  if (a.saved.data) saved = at.load(a.saved);
  if (a.scale.data) scale = at.load(a.scale);
  if (a.grad_log_det.data) grad_log_det = at.load_pair(a.grad_log_det, 0);
  uint64_t kept = a.mask.data ? at.load_mask(a.mask) : 0;
  T sum = T(0);
  with_map(k.map, [&](auto map) {
#pragma unroll 1
    for (int pair = 0; pair < n / 2; ++pair, kept >>= 16) {
      const Bounds<T> bounds = load_bounds<map.value>(k, a.bound, at, pair);
      const Pair<X> g = grad_y.take(), z = saved.take();
      const Pair<R> s = scale.take();
      Pair<X> of_x;
      Pair<R> of_scale, of_shift;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const AffineGradient<T> grad = affine_backward<map.value>(
            widen<T>(g.value[j]), grad_log_det.value[j], widen<T>(z.value[j]), widen<T>(s.value[j]), bounds.c.value[j],
            bounds.inverse.value[j], k.constants, k.divide, k.shift_first);
        const bool keep = kept >> (8 * j) & 1;
        of_x.value[j] = keep ? g.value[j] : narrow<X>(grad.x);
        of_scale.value[j] = keep ? R{} : narrow<R>(grad.raw_scale);
        of_shift.value[j] = keep ? R{} : narrow<R>(grad.raw_shift);
        sum += keep || !at.has(j) ? T(0) : grad.bound;
      }
      grad_y.put(of_x);
      scale.put(of_scale);
      grad_shift.take();
      grad_shift.put(of_shift);
    }
  });
  if (a.grad_x.data) at.store(a.grad_x, grad_y);
  if (a.grad_scale.data) at.store(a.grad_scale, scale);
  if (a.grad_shift.data) at.store(a.grad_shift, grad_shift);
  return sum;
}

template <class X, class R, class Elements>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<X, Elements>)
    backward_kernel(const __grid_constant__ BackwardArguments<X, R> a) {
  using T = Accumulation<X>;
  copy_passive(a.passive);
  if (blockIdx.x >= a.blocks) return;
  const Segment s = a.mapping.segment(blockIdx.x, a.event);
  T sum = T(0);
#pragma unroll 1
  for (uint32_t i = Elements::first(s); i < s.count; i += s.lanes * Elements::width)
    sum += backward_elements(a, Elements(s, i));
  if (a.sums == nullptr) return;
  sum = sum_lanes(sum, a.mapping);
  if (s.first_lane) store(a.sums + s.number, sum);
}

}  // namespace flowkernels::cuda::affine
