// Rational-quadratic splines on the CPU: the raw numbers of kLanes elements are transposed to one row per number, and
// every step is a loop over these lanes; a bin is searched by running sums and selects, not by gathers.
#include "flow/rational_quadratic_spline.h"

#include <type_traits>

#include "cpu/coupling.h"
#include "cpu/sums.h"
#include "cpu/transpose.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

constexpr int64_t kLanes = 64;
constexpr int64_t kThreadedSplines = 1024;  // below this, waking threads costs more than it saves

template <class T>
using Lane = T[kLanes];

// Widths or heights of the bins of each lane: bin k begins at origin + k least + factor (sum of e before k).
template <class T>
struct Axis {
  alignas(64) Lane<T> origin, total, share, factor, running, before, own;
  T least;
};

// What a thread works with. The first numbers are those of a block of lanes, the last those of a tile.
template <class T>
struct SplineScratch {
  alignas(64) Lane<T> value, number, first_raw, last_raw, zeros = {}, grad_y, grad_log_det;
  alignas(64) Lane<T> x, width, y, height, first, last, slope, outside;
  Axis<T> widths, heights;
  alignas(64) T in[kTile], other[kTile], out[kTile], terms[kTile];
  alignas(64) uint8_t mask[kTile];
  int64_t raw_places[kTile], grad_raw_places[kTile];
};

// Rows of kLanes numbers: the parameters and one more, e of widths and heights, and the parameters' gradients.
template <class T>
struct SplineRows {
  Zeros memory;
  T *raw, *widths, *heights, *grad;

  SplineRows(int64_t parameters, int64_t bins) : memory((2 * parameters + 1 + 2 * bins) * kLanes + 8) {
    constexpr uintptr_t line = 64;
    raw = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.values) + line - 1) / line * line);
    widths = raw + (parameters + 1) * kLanes;
    heights = widths + bins * kLanes;
    grad = heights + bins * kLanes;
  }
};

template <class T>
void copy_lanes(const T* from, T* to) {
  for (int64_t i = 0; i < kLanes; ++i) to[i] = from[i];
}

template <class F>
void with_normalization(Normalization normalization, F&& f) {
  if (normalization == Normalization::softmax) {
    f(std::integral_constant<Normalization, Normalization::softmax>());
  } else {
    f(std::integral_constant<Normalization, Normalization::softclip>());
  }
}

template <class F>
void with_derivative(KnotDerivative derivative, F&& f) {
  if (derivative == KnotDerivative::exp_softclip) {
    f(std::integral_constant<KnotDerivative, KnotDerivative::exp_softclip>());
  } else {
    f(std::integral_constant<KnotDerivative, KnotDerivative::softplus>());
  }
}

// Where the numbers of some elements begin: every `step` from `first` on, or, where that is 0, as listed.
struct Places {
  const int64_t* list;
  int64_t first, step;

  int64_t operator[](int64_t i) const { return step != 0 ? first + i * step : list[i]; }

  Places from(int64_t start, int64_t count) const {
    if (step != 0) return {nullptr, first + start * step, step};
    return {list + start, list[start], even_step(list + start, count)};
  }

  // The distance between each place and the next, or 0 where it is not the same.
  static int64_t even_step(const int64_t* at, int64_t count) {
    if (count < 2) return 1;
    const int64_t step = at[1] - at[0];
    bool even = true;
    for (int64_t i = 2; i < count; ++i) even &= at[i] - at[i - 1] == step;
    return even ? step : 0;
  }
};

// The places of a tile's elements; `list` is written where their distances differ, or are 0.
Places locate(const View& view, const Tile& tile, int64_t* list) {
  int64_t step = 0, next = 0;
  bool even = true;
  for (int d = kDims - 1; d >= 0; --d) {
    if (tile.size[d] == 1) continue;
    if (next == 0) step = view.stride[d];
    even &= view.stride[d] != 0 && (next == 0 || view.stride[d] == next);
    next = view.stride[d] * tile.size[d];
  }
  if (even) return {nullptr, offset(view, tile), step == 0 ? 1 : step};
  int64_t* at = list;
  for (int64_t a = 0; a < tile.size[0]; ++a) {
    for (int64_t b = 0; b < tile.size[1]; ++b) {
      for (int64_t c = 0; c < tile.size[2]; ++c) {
        int64_t place = view.offset + (tile.start[0] + a) * view.stride[0] + (tile.start[1] + b) * view.stride[1] +
                        (tile.start[2] + c) * view.stride[2] + tile.start[3] * view.stride[3];
        for (int64_t d = 0; d < tile.size[3]; ++d, place += view.stride[3]) *at++ = place;
      }
    }
  }
  return {list, list[0], 0};
}

template <class T, class From>
void gather_rows(const From* base, const Places& at, int64_t step, int64_t count, int64_t parameters, T* rows) {
  if constexpr (std::is_same_v<From, float> && sizeof(T) == 4) {
    if (step == 1 && at.step == parameters) {
      transpose(base + at.first, parameters, rows, kLanes, count, parameters);
      // The next block, that it may arrive in the second-level cache while this one is worked on.
      return prefetch<false, 1>(base + at.first + count * parameters, count * parameters);
    }
  }
  for (int64_t p = 0; p < parameters; ++p) {
    T* row = rows + p * kLanes;
    const From* from = base + p * step;
    if (at.step == 1) {
      for (int64_t i = 0; i < count; ++i) row[i] = convert(from[at.first + i], row);
    } else {
      for (int64_t i = 0; i < count; ++i) row[i] = convert(from[at[i]], row);
    }
  }
}

template <class T, class To>
void scatter_rows(To* base, const Places& at, int64_t step, int64_t count, int64_t parameters, const T* rows) {
  if constexpr (std::is_same_v<To, float> && sizeof(T) == 4) {
    if (step == 1 && at.step == parameters) {
      transpose(rows, kLanes, base + at.first, parameters, parameters, count);
      return prefetch<true, 3>(base + at.first + count * parameters, count * parameters);
    }
  }
  for (int64_t p = 0; p < parameters; ++p) {
    const T* row = rows + p * kLanes;
    To* to = base + p * step;
    if (at.step == 1) {
      for (int64_t i = 0; i < count; ++i) to[at.first + i] = convert(row[i], to);
    } else {
      for (int64_t i = 0; i < count; ++i) to[at[i]] = convert(row[i], to);
    }
  }
}

// Calls f(pointer of the dtype's type).
template <class T, class F>
void with_raw(Dtype dtype, const void* base, F&& f) {
  if (dtype == Dtype::float32) return f(static_cast<const float*>(base));
  if constexpr (sizeof(T) == 8) {
    f(static_cast<const double*>(base));
  } else {
    if (dtype == Dtype::float16) return f(static_cast<const Half*>(base));
    f(static_cast<const BFloat16*>(base));
  }
}

template <class T>
void load_rows(const SplinePlan& plan, const void* raw, const Places& at, int64_t count, T* rows) {
  const int64_t parameters = parameter_count(plan.options.normalization, plan.options.tails, plan.options.bins);
  with_raw<T>(plan.raw_dtype, raw, [&](auto* base) { gather_rows(base, at, plan.raw_step, count, parameters, rows); });
}

template <class T>
void store_rows(const SplineBackwardPlan& plan, void* grad_raw, const Places& at, int64_t count, const T* rows) {
  const SplineOptions& o = plan.common.options;
  const int64_t parameters = parameter_count(o.normalization, o.tails, o.bins);
  with_raw<T>(plan.common.raw_dtype, grad_raw, [&](auto* base) {
    using To = std::remove_const_t<std::remove_pointer_t<decltype(base)>>;
    scatter_rows(const_cast<To*>(base), at, plan.grad_raw_step, count, parameters, rows);
  });
}

// Calls f(first bin, how many) for groups of 8, 4, 2 or 1 bins. The loops over a group are unrolled inside of the loop
// over lanes: what goes from bin to bin stays in registers.
template <class F>
void in_groups(int64_t bins, F&& f) {
  int64_t k = 0;
  for (; k + 8 <= bins; k += 8) f(k, std::integral_constant<int, 8>());
  if (bins - k >= 4) {
    f(k, std::integral_constant<int, 4>());
    k += 4;
  }
  if (bins - k >= 2) {
    f(k, std::integral_constant<int, 2>());
    k += 2;
  }
  if (k < bins) f(k, std::integral_constant<int, 1>());
}

// The logits are kept as they are rounded for the highest: recomputed, a fused multiply-add could leave another above
// it.
template <Normalization normalization, int n, class T>
void logits(const T* raw, T logit_scale, T inverse_clip, T* to, T* most) {
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    T high = most[i];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      const T logit = spline_logit<normalization>(raw[j * kLanes + i], logit_scale, inverse_clip);
      to[j * kLanes + i] = logit;
      high = high < logit ? logit : high;
    }
    most[i] = high;
  }
}

template <int n, class T>
void exponentials(const T* most, T* e, T* total) {
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T high = most[i];
    T sum = total[i];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      const T value = math::exp_negative(e[j * kLanes + i] - high);
      e[j * kLanes + i] = value;
      sum += value;
    }
    total[i] = sum;
  }
}

template <Normalization normalization, class T>
void softmax(const T* raw, int64_t bins, T logit_scale, T inverse_clip, T* e, Axis<T>& axis) {
  T *most = axis.running, *total = axis.total;
  for (int64_t i = 0; i < kLanes; ++i) {
    most[i] = -std::numeric_limits<T>::infinity();
    total[i] = T(0);
  }
  in_groups(bins, [&](int64_t k, auto n) {
    logits<normalization, n()>(raw + k * kLanes, logit_scale, inverse_clip, e + k * kLanes, most);
  });
  in_groups(bins, [&](int64_t k, auto n) { exponentials<n()>(most, e + k * kLanes, total); });
}

template <class T>
void sizes(const T* raw, int64_t bins, T least, T shift, T* e, Axis<T>& axis) {
  for (int64_t k = 0; k < bins; ++k) {
    const T* from = raw + k * kLanes;
    T* to = e + k * kLanes;
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      const T value = spline_size(from[i], least, shift);
      to[i] = value;
      axis.total[i] = (k == 0 ? T(0) : axis.total[i]) + value;
    }
  }
}

// e of all bins, their total, and what makes sizes of them.
template <class T>
void measure(const SplineOptions& o, const SplineConstants<T>& k, const SplineRows<T>& rows, SplineScratch<T>& s) {
  const int64_t n = o.bins;
  const T *widths = rows.raw, *heights = rows.raw + n * kLanes;
  const bool normalised = o.normalization != Normalization::softplus;
  if (normalised) {
    with_normalization(o.normalization, [&](auto kind) {
      softmax<kind()>(widths, n, k.logit_scale, k.inverse_width_clip, rows.widths, s.widths);
      softmax<kind()>(heights, n, k.logit_scale, k.inverse_width_clip, rows.heights, s.heights);
    });
  } else {
    sizes(widths, n, k.min_width, k.width_shift, rows.widths, s.widths);
    sizes(heights, n, k.min_height, k.height_shift, rows.heights, s.heights);
  }
  const T *bottom = normalised ? s.zeros : rows.raw + 2 * n * kLanes, *left = normalised ? s.zeros : bottom + kLanes;
  s.widths.least = k.least_width;
  s.heights.least = k.least_height;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    s.widths.origin[i] = k.left + left[i];
    s.heights.origin[i] = k.bottom + bottom[i];
    s.widths.share[i] = normalised ? T(1) / s.widths.total[i] : T(1);
    s.heights.share[i] = normalised ? T(1) / s.heights.total[i] : T(1);
    s.widths.factor[i] = k.width_scale * s.widths.share[i];
    s.heights.factor[i] = k.height_scale * s.heights.share[i];
  }
}

// Raw derivatives, a row per knot. Where the first or last knot has no parameter, its row holds other numbers.
template <class T>
const T* derivative_rows(const SplineOptions& o, const SplineRows<T>& rows) {
  const int64_t first = first_derivative(o.normalization, o.bins);
  T* own = rows.raw + first * kLanes;
  if (o.tails == Tails::circular) copy_lanes(own, own + o.bins * kLanes);
  return o.tails == Tails::none || o.tails == Tails::circular ? own : own - kLanes;
}

// Selects among n bins the one of each value: `along` is the axis on which it lies, `across` the other.
template <bool left_side, int n, class T>
void search(int64_t bin, const T* e_along, const T* e_across, const T* derivatives, Axis<T>& along, Axis<T>& across,
            SplineScratch<T>& s) {
  const T least = along.least;
  const T *values = s.value, *origins = along.origin, *factors = along.factor;
  T *sums = along.running, *befores = along.before, *owns = along.own;
  T *other_sums = across.running, *other_befores = across.before, *other_owns = across.own;
  T *numbers = s.number, *firsts = s.first_raw, *lasts = s.last_raw;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T value = values[i], origin = origins[i], factor = factors[i];
    T sum = sums[i], before = befores[i], own = owns[i], number = numbers[i];
    T other_sum = other_sums[i], other_before = other_befores[i], other_own = other_owns[i];
    T first = firsts[i], last = lasts[i];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      const T k = static_cast<T>(bin + j), e = e_along[j * kLanes + i], other_e = e_across[j * kLanes + i];
      const T start = origin + least * k + factor * sum;
      const bool passed = left_side ? value > start : value >= start;
      number = passed ? k : number;
      before = passed ? sum : before;
      own = passed ? e : own;
      other_before = passed ? other_sum : other_before;
      other_own = passed ? other_e : other_own;
      first = passed ? derivatives[j * kLanes + i] : first;
      last = passed ? derivatives[(j + 1) * kLanes + i] : last;
      sum += e;
      other_sum += other_e;
    }
    sums[i] = sum;
    befores[i] = before;
    owns[i] = own;
    numbers[i] = number;
    other_sums[i] = other_sum;
    other_befores[i] = other_before;
    other_owns[i] = other_own;
    firsts[i] = first;
    lasts[i] = last;
  }
}

// The first bin is that of values below the box.
template <class T>
void begin_search(const T* e, Axis<T>& axis) {
  for (int64_t i = 0; i < kLanes; ++i) {
    axis.running[i] = T(0);
    axis.before[i] = T(0);
    axis.own[i] = e[i];
  }
}

template <bool left_side, class T>
void search_all(const SplineOptions& o, const SplineRows<T>& rows, const T* e_along, const T* e_across, Axis<T>& along,
                Axis<T>& across, SplineScratch<T>& s) {
  const T* derivatives = derivative_rows(o, rows);
  begin_search(e_along, along);
  begin_search(e_across, across);
  for (int64_t i = 0; i < kLanes; ++i) s.number[i] = T(0);
  copy_lanes(derivatives, s.first_raw);
  copy_lanes(derivatives + kLanes, s.last_raw);
  in_groups(o.bins, [&](int64_t k, auto n) {
    const int64_t row = k * kLanes;
    search<left_side, n()>(k, e_along + row, e_across + row, derivatives + row, along, across, s);
  });
}

// Start and size of the chosen bins along an axis.
template <class T>
void place(const Axis<T>& axis, const T* number, T* start, T* size) {
  const T least = axis.least;
  const T *origin = axis.origin, *factor = axis.factor, *before = axis.before, *own = axis.own;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    start[i] = origin[i] + least * number[i] + factor[i] * before[i];
    size[i] = least + factor[i] * own[i];
  }
}

// The chosen bins, the slope of the box's diagonal where tails need it, and which values are outside.
template <class T>
void choose(const SplineOptions& o, const SplineConstants<T>& k, bool inverse, SplineScratch<T>& s) {
  const bool normalised = o.normalization != Normalization::softplus, left_side = o.left_side;
  const bool has_ends = o.tails == Tails::linear || o.tails == Tails::affine;
  const T *origin = inverse ? s.heights.origin : s.widths.origin, *total = inverse ? s.heights.total : s.widths.total;
  const T end = inverse ? k.top : k.right, last_bin = static_cast<T>(o.bins - 1);
  with_derivative(o.derivative, [&](auto kind) {
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      s.first[i] =
          knot_derivative<kind()>(s.first_raw[i], k.min_derivative, k.derivative_shift, k.inverse_derivative_clip);
      s.last[i] =
          knot_derivative<kind()>(s.last_raw[i], k.min_derivative, k.derivative_shift, k.inverse_derivative_clip);
    }
  });
  const T *value = s.value, *number = s.number;
  T *slopes = s.slope, *first = s.first, *last = s.last, *outside = s.outside;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T slope = normalised ? k.end_derivative : s.heights.total[i] / s.widths.total[i];
    const T high = normalised ? end : origin[i] + total[i], v = value[i];
    const bool below = left_side ? v <= origin[i] : v < origin[i];
    slopes[i] = slope;
    first[i] = has_ends && number[i] == T(0) ? slope : first[i];
    last[i] = has_ends && number[i] == last_bin ? slope : last[i];
    outside[i] = below || v > high ? T(1) : T(0);
  }
  place(s.widths, number, s.x, s.width);
  place(s.heights, number, s.y, s.height);
}

// Everything about the bins of `count` elements whose raw numbers begin at `at`; s.value holds the values.
template <class T>
void find_bins(const SplinePlan& plan, const SplineConstants<T>& k, const void* raw, const Places& at, int64_t count,
               bool on_heights, const SplineRows<T>& rows, SplineScratch<T>& s) {
  const SplineOptions& o = plan.options;
  load_rows(plan, raw, at, count, rows.raw);
  measure(o, k, rows, s);
  const T *e_along = on_heights ? rows.heights : rows.widths, *e_across = on_heights ? rows.widths : rows.heights;
  Axis<T>&along = on_heights ? s.heights : s.widths, &across = on_heights ? s.widths : s.heights;
  if (o.left_side) {
    search_all<true>(o, rows, e_along, e_across, along, across, s);
  } else {
    search_all<false>(o, rows, e_along, e_across, along, across, s);
  }
  choose(o, k, on_heights, s);
}

template <bool inverse, class T>
void evaluate(Tails tails, const SplineScratch<T>& s, T* y, T* terms) {
  const T *value = s.value, *xs = s.x, *widths = s.width, *ys = s.y, *heights = s.height, *first = s.first;
  const T* last = s.last;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    // A temporary, not a variable: g++ would make an array of it and not vectorise the loop.
    const SplinePoint<T> found =
        spline_point<inverse>(value[i], SplineBin<T>{xs[i], widths[i], ys[i], heights[i], first[i], last[i]});
    y[i] = found.y;
    terms[i] = found.slope;
  }
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {  // alone: g++ does not vectorise it beside the rest
    const T log_slope = math::log(terms[i]);
    terms[i] = inverse ? -log_slope : log_slope;
  }
  if (tails == Tails::affine) {
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      const SplineOutput<T> tail =
          spline_tail<inverse>(s.value[i], s.widths.origin[i], s.heights.origin[i], s.slope[i]);
      y[i] = s.outside[i] > T(0) ? tail.y : y[i];
      terms[i] = s.outside[i] > T(0) ? tail.log_det : terms[i];
    }
    return;
  }
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const bool none = tails == Tails::none;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T y_outside = none ? nan : s.value[i], log_outside = none ? nan : T(0);
    y[i] = s.outside[i] > T(0) ? y_outside : y[i];
    terms[i] = s.outside[i] > T(0) ? log_outside : terms[i];
  }
}

// From gradients of y and of the log-determinant in s to that of the value, in `grad`; those of the bins take the place
// of the bins, zero outside of the box, and s.slope becomes the gradient of the diagonal's slope.
template <bool inverse, class T>
void differentiate(const SplineOptions& o, SplineScratch<T>& s, T* grad) {
  const bool affine = o.tails == Tails::affine, none = o.tails == Tails::none;
  const bool has_ends = affine || o.tails == Tails::linear, movable = o.normalization == Normalization::softplus;
  const T nan = std::numeric_limits<T>::quiet_NaN(), last_bin = static_cast<T>(o.bins - 1);
  const T *values = s.value, *numbers = s.number, *outsides = s.outside, *gy = s.grad_y, *gl = s.grad_log_det;
  const T* left = s.widths.origin;
  T *xs = s.x, *widths = s.width, *ys = s.y, *heights = s.height, *firsts = s.first, *lasts = s.last, *slopes = s.slope;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const bool outside = outsides[i] > T(0);
    const T diagonal = slopes[i], v = values[i];
    const T tail_slope = none ? nan : affine ? diagonal : T(1);
    const SplineGradient<T> gradient = spline_backward<inverse>(
        v, outside, tail_slope, gy[i], gl[i], SplineBin<T>{xs[i], widths[i], ys[i], heights[i], firsts[i], lasts[i]});
    const SplineBin<T> found = gradient.bin;
    const SplineCotangents<T> c = gradient.cotangents;
    const T first = outside ? T(0) : found.first, last = outside ? T(0) : found.last;
    const T at_start = has_ends && numbers[i] == T(0) ? first : T(0);
    const T at_end = has_ends && numbers[i] == last_bin ? last : T(0);
    grad[i] = c.input;
    xs[i] = outside ? (movable ? -c.y * diagonal : T(0)) : found.x;
    ys[i] = outside ? (movable ? c.y : T(0)) : found.y;
    widths[i] = outside ? T(0) : found.width;
    heights[i] = outside ? T(0) : found.height;
    firsts[i] = first;
    lasts[i] = last;
    slopes[i] = outside ? c.y * (v - left[i]) + c.log_slope / diagonal : at_start + at_end;
  }
}

template <Normalization normalization, int n, class T>
void some_logits_backward(int64_t bin, const T* raw, const T* e, T logit_scale, T inverse_clip, const T* number,
                          const T* of_start, const T* of_size, const Axis<T>& axis, T* grad) {
  const T *means = axis.running, *factors = axis.factor;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T chosen = number[i], start = of_start[i], size = of_size[i], mean = means[i], factor = factors[i];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      const T own = static_cast<T>(bin + j);
      const T of_own = chosen > own ? start : chosen == own ? size : T(0);
      const T of_logit = e[j * kLanes + i] * factor * (of_own - mean);
      grad[j * kLanes + i] =
          of_logit * spline_logit_slope<normalization>(raw[j * kLanes + i], logit_scale, inverse_clip);
    }
  }
}

// From gradients of a bin's start and size to those of the raw numbers of all bins; for normalised sizes.
template <Normalization normalization, class T>
void logits_backward(const T* raw, const T* e, int64_t bins, T logit_scale, T inverse_clip, const T* number,
                     const T* of_start, const T* of_size, Axis<T>& axis, T* grad) {
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T mean = (of_start[i] * axis.before[i] + of_size[i] * axis.own[i]) * axis.share[i];
    axis.running[i] = mean;
  }
  in_groups(bins, [&](int64_t k, auto n) {
    const int64_t row = k * kLanes;
    some_logits_backward<normalization, n()>(k, raw + row, e + row, logit_scale, inverse_clip, number, of_start,
                                             of_size, axis, grad + row);
  });
}

// The same for sizes that are not normalised, of which all have `of_every` besides.
template <class T>
void sizes_backward(const T* raw, int64_t bins, T shift, const T* number, const T* of_start, const T* of_size,
                    const T* of_every, T* grad) {
  for (int64_t k = 0; k < bins; ++k) {
    const T own = static_cast<T>(k);
    const T* from = raw + k * kLanes;
    T* to = grad + k * kLanes;
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      const T of_own = number[i] > own ? of_start[i] : number[i] == own ? of_size[i] : T(0);
      to[i] = (of_own + of_every[i]) * math::sigmoid(from[i] + shift);
    }
  }
}

// The gradients of raw widths, heights and origins from those that `differentiate` left.
template <class T>
void measure_backward(const SplineOptions& o, const SplineConstants<T>& k, const SplineRows<T>& rows,
                      SplineScratch<T>& s) {
  const int64_t n = o.bins;
  const T *widths = rows.raw, *heights = rows.raw + n * kLanes;
  T *grad_widths = rows.grad, *grad_heights = rows.grad + n * kLanes;
  if (o.normalization != Normalization::softplus) {
    with_normalization(o.normalization, [&](auto kind) {
      logits_backward<kind()>(widths, rows.widths, n, k.logit_scale, k.inverse_width_clip, s.number, s.x, s.width,
                              s.widths, grad_widths);
      logits_backward<kind()>(heights, rows.heights, n, k.logit_scale, k.inverse_width_clip, s.number, s.y, s.height,
                              s.heights, grad_heights);
    });
    return;
  }
  T *of_bottom = grad_heights + n * kLanes, *of_left = of_bottom + kLanes;
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const bool outside = s.outside[i] > T(0);
    const T by_total = s.slope[i] / s.widths.total[i];
    of_bottom[i] = s.y[i];
    of_left[i] = s.x[i];
    s.widths.running[i] = -by_total * (s.heights.total[i] / s.widths.total[i]);
    s.heights.running[i] = by_total;
    s.x[i] = outside ? T(0) : s.x[i];
    s.y[i] = outside ? T(0) : s.y[i];
  }
  sizes_backward(widths, n, k.width_shift, s.number, s.x, s.width, s.widths.running, grad_widths);
  sizes_backward(heights, n, k.height_shift, s.number, s.y, s.height, s.heights.running, grad_heights);
}

template <int n, class T>
void some_derivatives_backward(int64_t knot, const T* number, const T* first, const T* last, T* grad) {
#pragma omp simd
  for (int64_t i = 0; i < kLanes; ++i) {
    const T bin = number[i], as_first = first[i], as_last = last[i];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      const T own = static_cast<T>(knot + j), before = static_cast<T>(knot + j - 1);
      grad[j * kLanes + i] = bin == own ? as_first : bin == before ? as_last : T(0);
    }
  }
}

template <class T>
void derivatives_backward(const SplineOptions& o, const SplineConstants<T>& k, const SplineRows<T>& rows,
                          SplineScratch<T>& s) {
  with_derivative(o.derivative, [&](auto kind) {
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) {
      s.first[i] *= knot_derivative_slope<kind()>(s.first_raw[i], k.derivative_shift, k.inverse_derivative_clip);
      s.last[i] *= knot_derivative_slope<kind()>(s.last_raw[i], k.derivative_shift, k.inverse_derivative_clip);
    }
  });
  const bool at_ends = o.tails == Tails::none || o.tails == Tails::circular;
  const int64_t count = derivative_count(o.tails, o.bins), first_knot = at_ends ? 0 : 1;
  T* to = rows.grad + first_derivative(o.normalization, o.bins) * kLanes;
  in_groups(count, [&](int64_t j, auto n) {
    some_derivatives_backward<n()>(first_knot + j, s.number, s.first, s.last, to + j * kLanes);
  });
  if (o.tails != Tails::circular) return;
  const T last_bin = static_cast<T>(o.bins - 1);
  for (int64_t i = 0; i < kLanes; ++i) to[i] += s.number[i] == last_bin ? s.last[i] : T(0);
}

// Forgets what masked elements contribute.
template <class T>
void clear_rows(const uint8_t* mask, int64_t count, int64_t parameters, T* rows) {
  for (int64_t p = 0; p < parameters; ++p) {
    T* row = rows + p * kLanes;
    for (int64_t i = 0; i < count; ++i) row[i] = mask[i] ? T(0) : row[i];
  }
}

// A tile in one piece.
Walk in_one_piece(const Tile& tile) {
  Walk walk(tile);
  walk.rows = 1;
  walk.length = tile.elements();
  return walk;
}

template <class T>
void forward_tile(const SplineForwardPlan& plan, const SplineForwardCall& call, const SplineConstants<T>& k,
                  const Tile& tile, const SplineRows<T>& rows, SplineScratch<T>& s) {
  const SplinePlan& common = plan.common;
  const Walk walk = in_one_piece(tile);
  const T* x = load(plan.x, call.x, common.x_dtype, tile, walk, s.in).data;
  const uint8_t* mask = common.has_mask ? load_mask(common.mask, call.mask, tile, s.mask) : nullptr;
  const Places raw_at = locate(common.raw, tile, s.raw_places);
  alignas(64) Lane<T> y, terms;
  for (int64_t start = 0; start < walk.length; start += kLanes) {
    const int64_t count = smaller(kLanes, walk.length - start);
    for (int64_t i = 0; i < count; ++i) s.value[i] = x[start + i];
    find_bins(common, k, call.raw, raw_at.from(start, count), count, common.options.inverse, rows, s);
    with_bool(common.options.inverse, [&](auto inverse) { evaluate<inverse()>(common.options.tails, s, y, terms); });
    for (int64_t i = 0; i < count; ++i) {
      const bool kept = mask != nullptr && mask[start + i];
      s.out[start + i] = kept ? x[start + i] : y[i];
      s.terms[start + i] = kept ? T(0) : terms[i];
    }
  }
  store(plan.y, call.y, common.x_dtype, tile, s.out);
}

template <class T>
void backward_tile(const SplineBackwardPlan& plan, const SplineBackwardCall& call, const SplineConstants<T>& k,
                   const Tile& tile, const SplineRows<T>& rows, SplineScratch<T>& s) {
  const SplinePlan& common = plan.common;
  const SplineOptions& o = common.options;
  const Walk walk = in_one_piece(tile);
  const T* x = load(plan.saved, call.saved, common.x_dtype, tile, walk, s.in).data;
  const T* grad_y =
      call.grad_y == nullptr ? nullptr : load(plan.grad_y, call.grad_y, common.x_dtype, tile, walk, s.other).data;
  const uint8_t* mask = common.has_mask ? load_mask(common.mask, call.mask, tile, s.mask) : nullptr;
  const Places raw_at = locate(common.raw, tile, s.raw_places);
  const Places grad_raw_at = locate(plan.grad_raw, tile, s.grad_raw_places);
  alignas(64) Lane<T> grad;
  for (int64_t start = 0; start < walk.length; start += kLanes) {
    const int64_t count = smaller(kLanes, walk.length - start);
    for (int64_t i = 0; i < count; ++i) {
      s.value[i] = x[start + i];
      s.grad_y[i] = grad_y == nullptr ? T(0) : grad_y[start + i];
      s.grad_log_det[i] = s.terms[start + i];
    }
    find_bins(common, k, call.raw, raw_at.from(start, count), count, false, rows, s);
    with_bool(o.inverse, [&](auto inverse) { differentiate<inverse()>(o, s, grad); });
    for (int64_t i = 0; i < count; ++i) {
      const bool kept = mask != nullptr && mask[start + i];
      s.out[start + i] = !kept ? grad[i] : grad_y == nullptr ? T(0) : grad_y[start + i];
    }
    if (call.grad_raw == nullptr) continue;
    measure_backward(o, k, rows, s);
    derivatives_backward(o, k, rows, s);
    if (mask != nullptr) clear_rows(mask + start, count, parameter_count(o.normalization, o.tails, o.bins), rows.grad);
    store_rows(plan, call.grad_raw, grad_raw_at.from(start, count), count, rows.grad);
  }
  if (call.grad_x != nullptr) store(plan.grad_x, call.grad_x, common.x_dtype, tile, s.out);
}

template <class T>
void forward(const SplineForwardPlan& plan, const SplineForwardCall& call) {
  const SplineOptions& o = plan.common.options;
  const Tiling tiling(plan.common.active), passive(plan.common.passive);
  const int64_t tiles = tiling.count(), parts = tiling.per_row(), active = elements(plan.common.active);
  const Zeros partial(parts > 1 ? tiles : 0);
  T* log_det = static_cast<T*>(call.log_det);
  if (tiles == 0) fill(log_det, T(0), plan.common.active.size[0]);
  expect_large(call.y, active + elements(plan.common.passive), plan.common.x_dtype);
#pragma omp parallel if (active >= kThreadedSplines)
  {
    SplineScratch<T> scratch;
    const SplineRows<T> rows(parameter_count(o.normalization, o.tails, o.bins), o.bins);
    const SplineConstants<T> constants = spline_constants<T>(o);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < tiles; ++i) {
      const Tile tile = tiling.tile(i);
      forward_tile(plan, call, constants, tile, rows, scratch);
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
void backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call) {
  const SplineOptions& o = plan.common.options;
  const Tiling tiling(plan.common.active), passive(plan.common.passive);
  const int64_t tiles = tiling.count(), active = elements(plan.common.active);
  const int64_t parameters = parameter_count(o.normalization, o.tails, o.bins);
  const T* grad_log_det = static_cast<const T*>(call.grad_log_det);
  expect_large(call.grad_x, active + elements(plan.common.passive), plan.common.x_dtype);
  expect_large(call.grad_raw, active * parameters, plan.common.raw_dtype);
#pragma omp parallel if (active >= kThreadedSplines)
  {
    SplineScratch<T> scratch;
    const SplineRows<T> rows(parameters, o.bins);
    const SplineConstants<T> constants = spline_constants<T>(o);
    if (grad_log_det == nullptr) fill(scratch.terms, T(0), smaller(kTile, active));
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < tiles; ++i) {
      const Tile tile = tiling.tile(i);
      if (grad_log_det != nullptr) spread(grad_log_det, plan.grad_log_det_stride, tile, scratch.terms);
      backward_tile(plan, call, constants, tile, rows, scratch);
    }
    if (call.grad_x != nullptr) {
      copy_passive(passive, plan.grad_y_passive, call.grad_y, plan.grad_x_passive, call.grad_x, plan.common.x_dtype);
    }
  }
}

}  // namespace

void rational_quadratic_spline_forward(const SplineForwardPlan& plan, const SplineForwardCall& call) {
  if (plan.common.x_dtype == Dtype::float64) return forward<double>(plan, call);
  forward<float>(plan, call);
}

void rational_quadratic_spline_backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call) {
  if (plan.common.x_dtype == Dtype::float64) return backward<double>(plan, call);
  backward<float>(plan, call);
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
