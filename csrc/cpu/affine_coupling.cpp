// Affine coupling on the CPU: tiles of at most kTile elements go through one vectorised loop over the shared formula;
// the log-determinant's terms stay in the first-level cache until the tile's rows are summed.
#include "flow/affine_coupling.h"

#include <type_traits>

#include "cpu/coupling.h"
#include "cpu/sums.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

constexpr int64_t kBoundParts =
    64;  // partial gradients of a learned bound; fixed, so that sums never depend on threads
constexpr int64_t kFarElements = 1 << 20;  // in float32, 16 MB of inputs and outputs: caches no longer hold them

template <class T>
using Array = T[kTile];

template <class T>
struct Scratch {
  alignas(64) Array<T> x, s, t, y, terms, c, inverse_c;
  alignas(64) Array<uint8_t> mask;
};

template <class T>
struct BackwardScratch : Scratch<T> {
  alignas(64) Array<T> grad_y, grad_log_det, grad_x, grad_s, grad_t, grad_c, slopes;
};

// The bound of the elements of a tile and its reciprocal: arrays where it is learned, else one number.
template <class T>
struct Bounds {
  const T *c, *inverse_c;
  T same, inverse_same;
};

template <class F>
void with_formula(const AffinePlan& plan, F&& f) {
  with_map(plan.map, [&](auto map) {
    with_bool(plan.divide, [&](auto divide) {
      with_bool(plan.shift_first, [&](auto shift_first) {
        with_bool(plan.has_bound_tensor, [&](auto learned) {
          f(map, divide, shift_first, std::bool_constant<has_bound(map()) && learned()>());
        });
      });
    });
  });
}

template <class T>
Bounds<T> bounds(const AffinePlan& plan, const void* bound, const Tile& tile, Scratch<T>& scratch) {
  if (!plan.has_bound_tensor) {
    return {scratch.c, scratch.inverse_c, static_cast<T>(plan.bound), static_cast<T>(1.0 / plan.bound)};
  }
  const T* c = gather(plan.bound_view, static_cast<const T*>(bound), tile, scratch.c);
  const int64_t count = tile.elements();
  for (int64_t i = 0; i < count; ++i) scratch.inverse_c[i] = T(1) / c[i];
  return {c, scratch.inverse_c, T(0), T(0)};
}

// The flags are template arguments because g++ vectorises no loop that selects by a run-time constant.
template <ScaleMap map, bool divide, bool shift_first, class T>
void forward_tile(const Walk& walk, Rows<const T> x, Rows<const T> s, Rows<const T> t, const AffineConstants<T> k,
                  Rows<T> y, T* terms) {
  for (int64_t r = 0; r < walk.rows; ++r) {
    const T *xs = x[r], *ss = s[r], *ts = t[r];
    T *ys = y[r], *logs = terms + r * walk.length;
#pragma omp simd
    for (int64_t i = 0; i < walk.length; ++i) {
      const T scale = map == ScaleMap::additive ? T(0) : ss[i];
      const AffineOutput<T> out = affine_forward<map>(xs[i], scale, ts[i], T(1), T(1), k, divide, shift_first);
      ys[i] = out.y;
      logs[i] = out.log_m;
    }
  }
}

// Where a bounded map came first, `slopes` and `grad_c` hold the derivatives of s.
template <ScaleMap map, bool divide, bool shift_first, bool bounded, bool learned, class T>
void backward_tile(const Walk& walk, Rows<const T> grad_y, const T* grad_log_det, Rows<const T> saved, Rows<const T> s,
                   const AffineConstants<T> k, const T* slopes, Rows<T> grad_x, Rows<T> grad_s, Rows<T> grad_t,
                   T* grad_c) {
  constexpr bool additive = map == ScaleMap::additive;
  for (int64_t r = 0; r < walk.rows; ++r) {
    const int64_t start = r * walk.length;
    const T *gy = grad_y[r], *gl = grad_log_det + start, *vs = saved[r], *ss = s[r], *slope = slopes + start;
    T *gx = grad_x[r], *gs = grad_s[r], *gt = grad_t[r], *gc = grad_c + start;
#pragma omp simd
    for (int64_t i = 0; i < walk.length; ++i) {
      const AffineGradient<T> gradient = affine_backward<map>(
          gy[i], gl[i], additive ? T(0) : vs[i], additive ? T(0) : ss[i], T(1), T(1), k, divide, shift_first);
      gx[i] = gradient.x;
      gs[i] = bounded ? gradient.raw_scale * slope[i] : gradient.raw_scale;
      gt[i] = gradient.raw_shift;
      if (learned) gc[i] *= gradient.raw_scale;
    }
  }
}

// Asks for a tile of the scales ahead of the loop that reads them beside the shifts. Both lie in the same pages, where
// processors foresee one stream but not two that alternate: 1.5 times as fast from main memory, slower from the caches.
template <class T>
FK_INLINE void read_ahead(const AffinePlan& plan, const Walk& walk, Rows<const T> s) {
  if (elements(plan.active) < kFarElements) return;
  for (int64_t r = 0; r < walk.rows; ++r) prefetch<false, 3>(s[r], walk.length);
}

// A bounded map runs as two loops: one of these writes log m, and for backward its derivatives by raw scale and bound;
// then the map `exp` takes log m for its scale. In one loop the chain of instructions is so long that processors do not
// overlap one step with the next.
template <ScaleMap map, bool divide, bool learned, class T>
void log_tile(const Walk& walk, Rows<const T> s, Bounds<T> bounds, const AffineConstants<T> k, T* terms) {
  const T same = bounds.same, inverse_same = bounds.inverse_same;
  for (int64_t r = 0; r < walk.rows; ++r) {
    const int64_t start = r * walk.length;
    const T *ss = s[r], *c = bounds.c + start, *inverse_c = bounds.inverse_c + start;
    T* logs = terms + start;
#pragma omp simd
    for (int64_t i = 0; i < walk.length; ++i) {
      logs[i] = multiplier<map>(k.scale_factor * ss[i], learned ? c[i] : same, learned ? inverse_c[i] : inverse_same, k,
                                divide)
                    .log_m;
    }
  }
}

template <ScaleMap map, bool divide, bool learned, class T>
void slope_tile(const Walk& walk, Rows<const T> s, Bounds<T> bounds, const AffineConstants<T> k, T* terms, T* slopes,
                T* grad_c) {
  const T same = bounds.same, inverse_same = bounds.inverse_same, sign = divide ? T(-1) : T(1);
  for (int64_t r = 0; r < walk.rows; ++r) {
    const int64_t start = r * walk.length;
    const T *ss = s[r], *c = bounds.c + start, *inverse_c = bounds.inverse_c + start;
    T *logs = terms + start, *by_scale = slopes + start, *by_bound = grad_c + start;
#pragma omp simd
    for (int64_t i = 0; i < walk.length; ++i) {
      const T scale = k.scale_factor * ss[i];
      const T own = learned ? c[i] : same, inverse = learned ? inverse_c[i] : inverse_same;
      logs[i] = multiplier<map>(scale, own, inverse, k, divide).log_m;
      const Slope<T> d = slope<map>(scale, own, inverse, k);
      by_scale[i] = k.scale_factor * sign * d.scale;
      if (learned) by_bound[i] = sign * d.bound;
    }
  }
}

// The constants of the map `exp` that follows a bounded one.
template <class T>
AffineConstants<T> after_bounded(const AffineConstants<T>& k) {
  return {T(0), T(0), T(1), k.shift_factor};
}

template <class T>
void keep(const Walk& walk, const uint8_t* mask, Rows<const T> kept, Rows<T> values) {
  for (int64_t r = 0; r < walk.rows; ++r) {
    const uint8_t* __restrict passive = mask + r * walk.length;
    const T* __restrict from = kept[r];
    T* __restrict to = values[r];
    for (int64_t i = 0; i < walk.length; ++i) to[i] = passive[i] ? from[i] : to[i];
  }
}

template <class T>
void clear(const Walk& walk, const uint8_t* mask, Rows<T> values) {
  for (int64_t r = 0; r < walk.rows; ++r) {
    const uint8_t* __restrict passive = mask + r * walk.length;
    T* __restrict to = values[r];
    for (int64_t i = 0; i < walk.length; ++i) to[i] = passive[i] ? T(0) : to[i];
  }
}

template <class T>
void forward_one(const AffineForwardPlan& plan, const AffineForwardCall& call, const Tile& tile, Scratch<T>& scratch) {
  const AffinePlan& common = plan.common;
  const Walk walk(tile);
  const Rows<const T> x = load(plan.x, call.x, common.x_dtype, tile, walk, scratch.x);
  const Rows<const T> t = load(plan.shift, call.shift, common.raw_dtype, tile, walk, scratch.t);
  const Rows<const T> s =
      call.scale == nullptr ? t : load(common.scale, call.scale, common.raw_dtype, tile, walk, scratch.s);
  const Rows<T> y = target(plan.y, call.y, common.x_dtype, tile, walk, scratch.y);
  const Bounds<T> c = bounds(common, call.bound, tile, scratch);
  const AffineConstants<T> k = affine_constants<T>(common);
  with_formula(common, [&](auto map, auto divide, auto shift_first, auto learned) {
    if constexpr (has_bound(map())) {
      log_tile<map(), divide(), learned()>(walk, s, c, k, scratch.terms);
      const Rows<const T> logs{scratch.terms, walk.length};
      forward_tile<ScaleMap::exp, false, shift_first()>(walk, x, logs, t, after_bounded(k), y, scratch.terms);
    } else {
      read_ahead(common, walk, s);
      forward_tile<map(), divide(), shift_first()>(walk, x, s, t, k, y, scratch.terms);
    }
  });
  if (common.has_mask) {
    const uint8_t* mask = load_mask(common.mask, call.mask, tile, scratch.mask);
    keep(walk, mask, x, y);
    clear(walk, mask, Rows<T>{scratch.terms, walk.length});
  }
  if (y.data == scratch.y) store(plan.y, call.y, common.x_dtype, tile, y.data);
}

template <class T>
void backward_one(const AffineBackwardPlan& plan, const AffineBackwardCall& call, const Tile& tile,
                  BackwardScratch<T>& scratch) {
  const AffinePlan& common = plan.common;
  const Walk walk(tile);
  const Rows<const T> grad_y = call.grad_y == nullptr
                                   ? Rows<const T>{scratch.grad_y, walk.length}
                                   : load(plan.grad_y, call.grad_y, common.x_dtype, tile, walk, scratch.grad_y);
  const bool additive = common.map == ScaleMap::additive;  // which reads neither
  const Rows<const T> saved = additive ? grad_y : load(plan.saved, call.saved, common.x_dtype, tile, walk, scratch.x);
  const Rows<const T> s = additive ? grad_y : load(common.scale, call.scale, common.raw_dtype, tile, walk, scratch.s);
  const Bounds<T> c = bounds(common, call.bound, tile, scratch);
  const Rows<T> grad_x = target(plan.grad_x, call.grad_x, common.x_dtype, tile, walk, scratch.grad_x);
  const Rows<T> grad_s = target(plan.grad_scale, call.grad_scale, common.raw_dtype, tile, walk, scratch.grad_s);
  const Rows<T> grad_t = target(plan.grad_shift, call.grad_shift, common.raw_dtype, tile, walk, scratch.grad_t);
  const AffineConstants<T> k = affine_constants<T>(common);
  with_formula(common, [&](auto map, auto divide, auto shift_first, auto learned) {
    const T* gl = scratch.grad_log_det;
    if constexpr (has_bound(map())) {
      slope_tile<map(), divide(), learned()>(walk, s, c, k, scratch.terms, scratch.slopes, scratch.grad_c);
      const Rows<const T> logs{scratch.terms, walk.length};
      backward_tile<ScaleMap::exp, false, shift_first(), true, learned()>(
          walk, grad_y, gl, saved, logs, after_bounded(k), scratch.slopes, grad_x, grad_s, grad_t, scratch.grad_c);
    } else {
      backward_tile<map(), divide(), shift_first(), false, false>(walk, grad_y, gl, saved, s, k, scratch.slopes, grad_x,
                                                                  grad_s, grad_t, scratch.grad_c);
    }
  });
  if (common.has_mask) {
    const uint8_t* mask = load_mask(common.mask, call.mask, tile, scratch.mask);
    keep(walk, mask, grad_y, grad_x);
    clear(walk, mask, grad_s);
    clear(walk, mask, grad_t);
    if (call.grad_bound != nullptr) clear(walk, mask, Rows<T>{scratch.grad_c, walk.length});
  }
  if (call.grad_x != nullptr && grad_x.data == scratch.grad_x) {
    store(plan.grad_x, call.grad_x, common.x_dtype, tile, grad_x.data);
  }
  if (call.grad_scale != nullptr && grad_s.data == scratch.grad_s) {
    store(plan.grad_scale, call.grad_scale, common.raw_dtype, tile, grad_s.data);
  }
  if (call.grad_shift != nullptr && grad_t.data == scratch.grad_t) {
    store(plan.grad_shift, call.grad_shift, common.raw_dtype, tile, grad_t.data);
  }
}

// Adds a tile's gradients of the bound to one total per channel.
template <class T>
void add_by_channel(const View& view, const Tile& tile, const T* terms, double* totals) {
  const int64_t inner = tile.size[3], step = view.stride[3];
  for (int64_t i = 0; i < tile.size[0]; ++i) {
    for (int64_t j = 0; j < tile.size[1]; ++j) {
      for (int64_t k = 0; k < tile.size[2]; ++k, terms += inner) {
        double* total =
            totals + (tile.start[1] + j) * view.stride[1] + (tile.start[2] + k) * view.stride[2] + tile.start[3] * step;
        if (step == 0) {
          *total += sum(terms, inner);
        } else {
          for (int64_t e = 0; e < inner; ++e) total[e * step] += terms[e];
        }
      }
    }
  }
}

template <class T>
void forward(const AffineForwardPlan& plan, const AffineForwardCall& call) {
  const Tiling tiling(plan.common.active), passive(plan.common.passive);
  const int64_t tiles = tiling.count(), parts = tiling.per_row();
  const Zeros partial(parts > 1 ? tiles : 0);
  T* log_det = static_cast<T*>(call.log_det);
  if (tiles == 0) fill(log_det, T(0), plan.common.active.size[0]);
  expect_large(call.y, elements(plan.common.active) + elements(plan.common.passive), plan.common.x_dtype);
#pragma omp parallel if (elements(plan.common.active) + elements(plan.common.passive) >= kThreadedElements)
  {
    Scratch<T> scratch;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < tiles; ++i) {
      const Tile tile = tiling.tile(i);
      forward_one(plan, call, tile, scratch);
      if (parts > 1) {
        partial.values[i] = sum(scratch.terms, tile.elements());
      } else {
        sum_rows(tile, scratch.terms, log_det);
      }
    }
    copy_passive(passive, plan.x_passive, call.x, plan.y_passive, call.y, plan.common.x_dtype);
  }
  if (parts > 1) add_up(plan.common.active.size[0], parts, parts, 1, partial.values, log_det);
}

template <class T>
void backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call) {
  const AffinePlan& common = plan.common;
  const Tiling tiling(common.active), passive(common.passive);
  const int64_t tiles = tiling.count(), groups = call.grad_bound == nullptr ? tiles : smaller(tiles, kBoundParts);
  const Zeros totals(call.grad_bound == nullptr ? 0 : groups * common.channels);
  const T* grad_log_det = static_cast<const T*>(call.grad_log_det);
  const int64_t active = elements(common.active);
  const bool one_tensor = call.grad_scale == call.grad_shift;  // both halves of raw's gradient
  expect_large(call.grad_x, active + elements(common.passive), common.x_dtype);
  expect_large(call.grad_shift, one_tensor ? 2 * active : active, common.raw_dtype);
  if (!one_tensor) expect_large(call.grad_scale, active, common.raw_dtype);
#pragma omp parallel if (elements(common.active) + elements(common.passive) >= kThreadedElements)
  {
    BackwardScratch<T> scratch;
    const int64_t used = smaller(kTile, elements(common.active));
    if (call.grad_y == nullptr) fill(scratch.grad_y, T(0), used);
    if (grad_log_det == nullptr) fill(scratch.grad_log_det, T(0), used);
#pragma omp for schedule(static) nowait
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t i = group * tiles / groups; i < (group + 1) * tiles / groups; ++i) {
        const Tile tile = tiling.tile(i);
        if (grad_log_det != nullptr) spread(grad_log_det, plan.grad_log_det_stride, tile, scratch.grad_log_det);
        backward_one(plan, call, tile, scratch);
        if (call.grad_bound != nullptr) {
          add_by_channel(common.bound_view, tile, scratch.grad_c, totals.values + group * common.channels);
        }
      }
    }
    if (call.grad_x != nullptr) {
      copy_passive(passive, plan.grad_y_passive, call.grad_y, plan.grad_x_passive, call.grad_x, common.x_dtype);
    }
  }
  if (call.grad_bound != nullptr) {
    add_up(common.channels, 1, groups, common.channels, totals.values, static_cast<T*>(call.grad_bound));
  }
}

}  // namespace

void affine_coupling_forward(const AffineForwardPlan& plan, const AffineForwardCall& call) {
  if (plan.common.x_dtype == Dtype::float64) return forward<double>(plan, call);
  forward<float>(plan, call);
}

void affine_coupling_backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call) {
  if (plan.common.x_dtype == Dtype::float64) return backward<double>(plan, call);
  backward<float>(plan, call);
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
