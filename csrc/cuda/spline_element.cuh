// Rational-quadratic splines of single elements on the device: from raw numbers to the element's bin and back. Types of
// `Numbers` say where they are: get(i) is the i-th raw number, put(i, v) makes v its gradient and comes after every
// get.
#pragma once

#include "cuda/launch.cuh"
#include "flow/rational_quadratic_spline.h"

namespace flowkernels::cuda::spline {

// One call in its accumulation type.
template <class T>
struct Spline {
  SplineConstants<T> constants;
  Normalization normalization;
  KnotDerivative derivative;
  Tails tails;
  bool left_side, inverse;
  uint32_t bins, first_derivative, derivatives;

  explicit Spline(const SplineOptions& o)
      : constants(spline_constants<T>(o)),
        normalization(o.normalization),
        derivative(o.derivative),
        tails(o.tails),
        left_side(o.left_side),
        inverse(o.inverse),
        bins(static_cast<uint32_t>(o.bins)),
        first_derivative(static_cast<uint32_t>(flowkernels::first_derivative(o.normalization, o.bins))),
        derivatives(static_cast<uint32_t>(derivative_count(o.tails, o.bins))) {}

  FK_INLINE bool has_origin() const { return normalization == Normalization::softplus; }
  FK_INLINE uint32_t parameters() const { return first_derivative + derivatives; }
};

// Calls f with the normalization as a compile-time constant.
template <class F>
FK_INLINE void with_normalization(Normalization normalization, F&& f) {
  if (normalization == Normalization::softmax)
    f(std::integral_constant<Normalization, Normalization::softmax>{});
  else if (normalization == Normalization::softclip)
    f(std::integral_constant<Normalization, Normalization::softclip>{});
  else
    f(std::integral_constant<Normalization, Normalization::softplus>{});
}

// Calls f(k) for every bin; the counter is a constant where `bins`, their number, is not 0.
template <int bins, class F>
FK_INLINE void for_bins(uint32_t count, F&& f) {
  if constexpr (bins > 0) {
#pragma unroll
    for (uint32_t k = 0; k < bins; ++k) f(k);
  } else {
#pragma unroll 4
    for (uint32_t k = 0; k < count; ++k) f(k);
  }
}

// A bin along one axis; `before` and `own` are the sum of e in front of it and its e.
template <class T>
struct Interval {
  uint32_t number;
  T start, size;
  T before, own;
};

// The bins of an element along one axis. Where their number is a constant, e of all bins stays in registers; where it
// is not, an array of them would lie in memory, and e is computed again from the raw number.
template <class T, int bins, class Numbers>
class Axis {
 public:
  T origin, sum;

  FK_INLINE Axis(const Spline<T>& spline, const Numbers& numbers, bool vertical)
      : spline_(spline), numbers_(numbers), first_(vertical ? count() : 0) {
    const SplineConstants<T>& c = spline.constants;
    origin = vertical ? c.bottom : c.left;
    least_ = vertical ? c.least_height : c.least_width;
    least_size_ = vertical ? c.min_height : c.min_width;
    shift_ = vertical ? c.height_shift : c.width_shift;
    sum = T(0);
    largest_ = factor_ = T(0);
    with_normalization(spline.normalization, [&](auto normalization) { fill<normalization.value>(); });
    if (spline.has_origin()) {
      origin += numbers.get(2 * count() + (vertical ? 0 : 1));
      factor_ = T(1);
    } else {
      factor_ = (vertical ? c.height_scale : c.width_scale) / sum;
    }
  }

  FK_INLINE bool is_outside(T value, T end) const {
    const T last = spline_.has_origin() ? origin + sum : end;
    return value < origin || last < value || (spline_.left_side && value == origin);
  }

  // The bin in which a value lies, the first for NaN.
  FK_INLINE Interval<T> find(T value) const {
    Interval<T> found{0, origin, T(0), T(0), T(0)};
    T before = T(0);
    for_bins<bins>(count(), [&](uint32_t k) {
      const T e = exponential(k), start = start_of(k, before);
      if (k == 0 || start < value || (start == value && !spline_.left_side)) found = {k, start, T(0), before, e};
      before += e;
    });
    found.size = least_ + factor_ * found.own;
    return found;
  }

  FK_INLINE Interval<T> at(uint32_t number) const {
    Interval<T> found{number, T(0), T(0), T(0), T(0)};
    for_bins<bins>(count(), [&](uint32_t k) {
      const T e = exponential(k);
      if (k < number) found.before += e;
      if (k == number) found.own = e;
    });
    found.start = start_of(number, found.before);
    found.size = least_ + factor_ * found.own;
    return found;
  }

  // Puts the gradients of the raw numbers, from those of a bin's start and size, and of the sum of sizes.
  FK_INLINE void put_gradients(const Interval<T>& bin, T of_start, T of_size, T of_sum) const {
    const T mean = spline_.has_origin() ? T(0) : (of_start * bin.before + of_size * bin.own) / sum;
    with_normalization(spline_.normalization, [&](auto normalization) {
      for_bins<bins>(count(), [&](uint32_t k) {
        const T of_this = k < bin.number ? of_start : k == bin.number ? of_size : T(0);
        if constexpr (normalization.value == Normalization::softplus)
          numbers_.put(first_ + k, (of_this + of_sum) * math::sigmoid(raw(k) + shift_));
        else
          numbers_.put(first_ + k, factor_ * exponential<normalization.value>(k) * (of_this - mean) *
                                       spline_logit_slope<normalization.value>(raw(k), spline_.constants.logit_scale,
                                                                               spline_.constants.inverse_width_clip));
      });
    });
  }

 private:
  FK_INLINE uint32_t count() const { return bins > 0 ? bins : spline_.bins; }
  FK_INLINE T raw(uint32_t k) const { return numbers_.get(first_ + k); }
  FK_INLINE T start_of(uint32_t k, T before) const { return origin + (least_ * static_cast<T>(k) + factor_ * before); }

  template <Normalization normalization>
  FK_INLINE T logit(uint32_t k) const {
    return spline_logit<normalization>(raw(k), spline_.constants.logit_scale, spline_.constants.inverse_width_clip);
  }

  FK_INLINE void keep(uint32_t k, T value) {
    if constexpr (bins > 0) kept_[k] = value;
  }

  template <Normalization normalization>
  FK_INLINE void fill() {
    if constexpr (normalization != Normalization::softplus) {
      for_bins<bins>(count(), [&](uint32_t k) {
        const T v = logit<normalization>(k);
        keep(k, v);
        largest_ = k == 0 || largest_ < v ? v : largest_;
      });
      if constexpr (bins > 0) for_bins<bins>(count(), [&](uint32_t k) { kept_[k] = math::exp(kept_[k] - largest_); });
    } else if constexpr (bins > 0) {
      for_bins<bins>(count(), [&](uint32_t k) { kept_[k] = spline_size(raw(k), least_size_, shift_); });
    }
    for_bins<bins>(count(), [&](uint32_t k) { sum += exponential<normalization>(k); });
  }

  // e of a bin.
  template <Normalization normalization>
  FK_INLINE T exponential(uint32_t k) const {
    if constexpr (bins > 0)
      return kept_[k];
    else if constexpr (normalization == Normalization::softplus)
      return spline_size(raw(k), least_size_, shift_);
    else
      return math::exp(logit<normalization>(k) - largest_);
  }
  FK_INLINE T exponential(uint32_t k) const {
    if constexpr (bins > 0) return kept_[k];
    T e = T(0);
    with_normalization(spline_.normalization, [&](auto normalization) { e = exponential<normalization.value>(k); });
    return e;
  }

  const Spline<T>& spline_;
  const Numbers& numbers_;
  uint32_t first_;
  T least_, least_size_, shift_, largest_, factor_;
  T kept_[bins > 0 ? bins : 1];
};

// The derivative at knot k, which is `end` where it has no parameter.
template <class T, class Numbers>
FK_INLINE T derivative_at(const Spline<T>& s, const Numbers& numbers, uint32_t k, T end) {
  const int64_t i = derivative_of_knot(s.tails, s.bins, k);
  if (i < 0) return end;
  const SplineConstants<T>& c = s.constants;
  const T raw = numbers.get(s.first_derivative + static_cast<uint32_t>(i));
  return s.derivative == KnotDerivative::exp_softclip
             ? knot_derivative<KnotDerivative::exp_softclip>(raw, c.min_derivative, c.derivative_shift,
                                                             c.inverse_derivative_clip)
             : knot_derivative<KnotDerivative::softplus>(raw, c.min_derivative, c.derivative_shift,
                                                         c.inverse_derivative_clip);
}

// Its derivative by the raw number, 0 where there is none.
template <class T, class Numbers>
FK_INLINE T derivative_slope_at(const Spline<T>& s, const Numbers& numbers, int64_t i) {
  if (i < 0) return T(0);
  const SplineConstants<T>& c = s.constants;
  const T raw = numbers.get(s.first_derivative + static_cast<uint32_t>(i));
  return s.derivative == KnotDerivative::exp_softclip
             ? knot_derivative_slope<KnotDerivative::exp_softclip>(raw, c.derivative_shift, c.inverse_derivative_clip)
             : knot_derivative_slope<KnotDerivative::softplus>(raw, c.derivative_shift, c.inverse_derivative_clip);
}

// Of the box's diagonal, which is also the derivative at its ends where that has no parameter.
template <class T>
FK_INLINE T diagonal(const Spline<T>& s, T width, T height) {
  return s.has_origin() ? height / width : s.constants.end_derivative;
}

template <class T, class Numbers>
FK_INLINE SplineBin<T> bin_of(const Spline<T>& s, const Numbers& numbers, const Interval<T>& across,
                              const Interval<T>& up, T end) {
  return {across.start,
          across.size,
          up.start,
          up.size,
          derivative_at(s, numbers, across.number, end),
          derivative_at(s, numbers, across.number + 1, end)};
}

template <int bins, class T, class Numbers>
FK_INLINE SplineOutput<T> forward_element(const Spline<T>& s, const Numbers& numbers, T x) {
  const SplineConstants<T>& c = s.constants;
  const Axis<T, bins, Numbers> searched(s, numbers, s.inverse);
  const Interval<T> found = searched.find(x);
  const Axis<T, bins, Numbers> other(s, numbers, !s.inverse);
  const bool outside = searched.is_outside(x, s.inverse ? c.top : c.right);
  const T end = diagonal(s, s.inverse ? other.sum : searched.sum, s.inverse ? searched.sum : other.sum);
  if (outside) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    if (s.tails == Tails::none) return {nan, nan};
    if (s.tails != Tails::affine) return {x, T(0)};
    return s.inverse ? spline_tail<true>(x, other.origin, searched.origin, end)
                     : spline_tail<false>(x, searched.origin, other.origin, end);
  }
  const Interval<T> beside = other.at(found.number);
  return s.inverse ? spline_forward<true>(x, bin_of(s, numbers, beside, found, end))
                   : spline_forward<false>(x, bin_of(s, numbers, found, beside, end));
}

template <class T, class Numbers>
FK_INLINE void put_derivatives(const Spline<T>& s, const Numbers& numbers, uint32_t bin, T of_first, T of_last) {
  const int64_t first = derivative_of_knot(s.tails, s.bins, bin), last = derivative_of_knot(s.tails, s.bins, bin + 1);
  const T of_raw_first = of_first * derivative_slope_at(s, numbers, first);
  const T of_raw_last = of_last * derivative_slope_at(s, numbers, last);
#pragma unroll 4
  for (uint32_t i = 0; i < s.derivatives; ++i)  // both are of one number where a circle has one bin
    numbers.put(s.first_derivative + i, (i == first ? of_raw_first : T(0)) + (i == last ? of_raw_last : T(0)));
}

// Returns the gradient of what the call was given; puts those of the raw numbers if they are wanted.
template <int bins, class T, class Numbers>
FK_INLINE T backward_element(const Spline<T>& s, const Numbers& numbers, T x, T grad_y, T grad_log_det, bool of_raw) {
  const Axis<T, bins, Numbers> widths(s, numbers, false), heights(s, numbers, true);
  const Interval<T> across = widths.find(x), up = heights.at(across.number);
  const T end = diagonal(s, widths.sum, heights.sum);
  const bool outside = widths.is_outside(x, s.constants.right);
  const T tail_slope = s.tails == Tails::affine ? end
                       : s.tails == Tails::none ? std::numeric_limits<T>::quiet_NaN()
                                                : T(1);
  const SplineBin<T> b = bin_of(s, numbers, across, up, end);
  const SplineGradient<T> gradient = s.inverse
                                         ? spline_backward<true>(x, outside, tail_slope, grad_y, grad_log_det, b)
                                         : spline_backward<false>(x, outside, tail_slope, grad_y, grad_log_det, b);
  const SplineCotangents<T> by = gradient.cotangents;
  const SplineBin<T> of = outside ? SplineBin<T>{} : gradient.bin;
  if (!of_raw) return by.input;
  put_derivatives(s, numbers, across.number, of.first, of.last);
  T of_height_sum = T(0);
  if (s.has_origin()) {  // of which the slope of the diagonal is made, and then the derivatives at both ends
    const T of_diagonal = outside
                              ? by.y * (x - widths.origin) + by.log_slope / end
                              : (across.number == 0 ? of.first : T(0)) + (across.number + 1 == s.bins ? of.last : T(0));
    of_height_sum = of_diagonal / widths.sum;
    numbers.put(2 * s.bins, by.y);
    numbers.put(2 * s.bins + 1, outside ? -by.y * end : of.x);
  }
  widths.put_gradients(across, of.x, of.width, -of_height_sum * end);
  heights.put_gradients(up, of.y, of.height, of_height_sum);
  return by.input;
}

}  // namespace flowkernels::cuda::spline
