// Rational-quadratic splines of single elements: Durkan et al., "Neural Spline Flows" (2019), section 3.1. What a call
// is told, how raw numbers become bins, and a bin's map, inverse, log-derivative and gradients.
//
// An element's raw numbers are K widths, K heights, the bottom and left of its box where sizes are not normalised, and
// the derivatives at those knots that have a parameter. Backends hold e_k = exp(logit_k - max) of widths and heights
// (sizes where they are not normalised), their running sums, and select what belongs to the element's bin.
#pragma once

#include "flow/math.h"
#include "flow/plan.h"

namespace flowkernels {

enum class Normalization : int32_t { softmax = 0, softclip = 1, softplus = 2 };
enum class KnotDerivative : int32_t { softplus = 0, exp_softclip = 1, softplus_shifted = 2 };
enum class Tails : int32_t { linear = 0, circular = 1, affine = 2, none = 3 };

struct SplineOptions {
  int64_t bins;
  Normalization normalization;
  KnotDerivative derivative;
  Tails tails;
  bool left_side;  // a knot belongs to the bin on its left
  bool inverse;
  double left, right, bottom, top;
  double min_width, min_height, min_derivative;
  double logit_scale;
  double width_clip, derivative_clip;  // bounds of the softclips
  double width_shift, height_shift, derivative_shift;
};

// Where an element's numbers are among its parameters.
constexpr int64_t first_derivative(Normalization normalization, int64_t bins) {
  return 2 * bins + (normalization == Normalization::softplus ? 2 : 0);
}

constexpr int64_t derivative_count(Tails tails, int64_t bins) {
  return tails == Tails::circular ? bins : tails == Tails::none ? bins + 1 : bins - 1;
}

constexpr int64_t parameter_count(Normalization normalization, Tails tails, int64_t bins) {
  return first_derivative(normalization, bins) + derivative_count(tails, bins);
}

// The number among the derivatives of knot k = 0, ..., bins; -1 where it has no parameter.
constexpr int64_t derivative_of_knot(Tails tails, int64_t bins, int64_t k) {
  return tails == Tails::none ? k : tails == Tails::circular ? k % bins : k == 0 || k == bins ? -1 : k - 1;
}

struct SplinePlan {
  SplineOptions options;
  bool has_mask;
  Dtype x_dtype, raw_dtype;
  Extent active, passive;
  View raw, mask;    // raw: the first parameter of each element
  int64_t raw_step;  // from one parameter of an element to the next
};

struct SplineForwardPlan {
  SplinePlan common;
  View x, y, x_passive, y_passive;
};

// `saved` is the point in the spline's domain: x, or y of the inverse.
struct SplineBackwardPlan {
  SplinePlan common;
  View grad_y, saved, grad_x, grad_raw, grad_y_passive, grad_x_passive;
  int64_t grad_raw_step;
  int64_t grad_log_det_stride;
};

// Base addresses of one call. The mask has a byte per element; log_det has the type in which is computed.
struct SplineForwardCall {
  const void *x, *raw, *mask;
  void *y, *log_det;
};

// A null pointer is a gradient that is absent or not wanted.
struct SplineBackwardCall {
  const void *grad_y, *grad_log_det, *saved, *raw, *mask;
  void *grad_x, *grad_raw;
};

// The options in the type of computation. Bin k of the widths begins at origin + k least + scale (sum of e before k) /
// (sum of e), and likewise of the heights; where sizes are not normalised, least is 0, and scale and the sum are 1.
template <class T>
struct SplineConstants {
  T left, right, bottom, top;
  T least_width, width_scale, least_height, height_scale;
  T logit_scale, inverse_width_clip, inverse_derivative_clip;
  T min_width, min_height, min_derivative, width_shift, height_shift, derivative_shift;
  T end_derivative;  // at both ends of the box where no parameter is, for normalised sizes
};

template <class T>
inline SplineConstants<T> spline_constants(const SplineOptions& o) {
  const double width = o.right - o.left, height = o.top - o.bottom, bins = static_cast<double>(o.bins);
  const bool normalised = o.normalization != Normalization::softplus;
  SplineConstants<T> k{};
  k.left = static_cast<T>(o.left);
  k.right = static_cast<T>(o.right);
  k.bottom = static_cast<T>(o.bottom);
  k.top = static_cast<T>(o.top);
  k.least_width = static_cast<T>(normalised ? width * o.min_width : 0.0);
  k.width_scale = static_cast<T>(normalised ? width * (1.0 - bins * o.min_width) : 1.0);
  k.least_height = static_cast<T>(normalised ? height * o.min_height : 0.0);
  k.height_scale = static_cast<T>(normalised ? height * (1.0 - bins * o.min_height) : 1.0);
  k.logit_scale = static_cast<T>(o.logit_scale);
  k.inverse_width_clip = static_cast<T>(1.0 / o.width_clip);
  k.inverse_derivative_clip = static_cast<T>(1.0 / o.derivative_clip);
  k.min_width = static_cast<T>(o.min_width);
  k.min_height = static_cast<T>(o.min_height);
  k.min_derivative = static_cast<T>(o.min_derivative);
  k.width_shift = static_cast<T>(o.width_shift);
  k.height_shift = static_cast<T>(o.height_shift);
  k.derivative_shift = static_cast<T>(o.derivative_shift);
  k.end_derivative = static_cast<T>(o.tails == Tails::affine ? height / width : 1.0);
  return k;
}

template <class T>
FK_INLINE T softclip(T v, T inverse_bound) {
  return v / (T(1) + math::abs(v) * inverse_bound);
}

template <class T>
FK_INLINE T softclip_slope(T v, T inverse_bound) {
  const T r = T(1) / (T(1) + math::abs(v) * inverse_bound);
  return r * r;
}

// The logit of a raw width or height, and its derivative.
template <Normalization normalization, class T>
FK_INLINE T spline_logit(T raw, T logit_scale, T inverse_clip) {
  return normalization == Normalization::softclip ? softclip(raw, inverse_clip) : logit_scale * raw;
}

template <Normalization normalization, class T>
FK_INLINE T spline_logit_slope(T raw, T logit_scale, T inverse_clip) {
  return normalization == Normalization::softclip ? softclip_slope(raw, inverse_clip) : logit_scale;
}

// An unnormalised width or height, whose derivative is sigmoid(raw + shift).
template <class T>
FK_INLINE T spline_size(T raw, T least, T shift) {
  return least + math::softplus(raw + shift);
}

// The derivative of the spline at a knot from its raw number, and the derivative of that.
template <KnotDerivative derivative, class T>
FK_INLINE T knot_derivative(T raw, T least, T shift, T inverse_clip) {
  return derivative == KnotDerivative::exp_softclip ? math::exp(softclip(raw, inverse_clip))
                                                    : least + math::softplus(raw + shift);
}

template <KnotDerivative derivative, class T>
FK_INLINE T knot_derivative_slope(T raw, T shift, T inverse_clip) {
  return derivative == KnotDerivative::exp_softclip
             ? math::exp(softclip(raw, inverse_clip)) * softclip_slope(raw, inverse_clip)
             : math::sigmoid(raw + shift);
}

// A bin's lower left corner, its size, and the derivatives at its ends; or gradients of these.
template <class T>
struct SplineBin {
  T x, width, y, height, first, last;
};

// What y and dy/dx at position t of a bin are made of: y = b.y + b.height * share, dy/dx = (slope / q)^2 m. All are
// sums of positive terms.
template <class T>
struct SplineValue {
  T share, slope, inverse_q, m;
};

template <class T>
FK_INLINE SplineValue<T> spline_value(T t, T slope, SplineBin<T> b) {
  const T u = T(1) - t, p = t * u, s = slope;
  const T inverse_q = T(1) / (s * (T(1) - T(2) * p) + (b.first + b.last) * p);
  const T m = b.last * (t * t) + T(2) * s * p + b.first * (u * u);
  return {(s * (t * t) + b.first * p) * inverse_q, s, inverse_q, m};
}

// Keeps NaN.
template <class T>
FK_INLINE T unit(T t) {
  const T above = t < T(0) ? T(0) : t;
  return T(1) < above ? T(1) : above;
}

// Position t where y = b.y + b.height * v, in a bin whose diagonal has slope s. With e = first (1 - v) - last v the
// discriminant is e^2 + 4 s^2 v (1 - v).
template <class T>
FK_INLINE T spline_root(T v, T s, SplineBin<T> b) {
  const T w = T(1) - v;
  const T e = b.first * w - b.last * v;
  const T rest = T(4) * s * s * (v * w);
  const T sum = math::sqrt(e * e + rest) + math::abs(e), part = T(2) * s * v;
  const bool falling = e < T(0);  // then the other term is rest / sum
  const T above = falling ? part * sum : part;
  return above / (above + (falling ? rest : sum));
}

// The image of a point inside of the box, and dy/dx of the spline there, whichever way it goes.
template <class T>
struct SplinePoint {
  T y, slope;
};

template <bool inverse, class T>
FK_INLINE SplinePoint<T> spline_point(T x, SplineBin<T> b) {
  const T inverse_width = T(1) / b.width, s = b.height * inverse_width;
  const T t = inverse ? spline_root(unit((x - b.y) / b.height), s, b) : unit((x - b.x) * inverse_width);
  const SplineValue<T> value = spline_value(t, s, b);
  const T ratio = s * value.inverse_q;
  return {inverse ? b.x + b.width * t : b.y + b.height * value.share, value.m * (ratio * ratio)};
}

template <class T>
struct SplineOutput {
  T y, log_det;
};

// Of a point inside of the box.
template <bool inverse, class T>
FK_INLINE SplineOutput<T> spline_forward(T x, SplineBin<T> b) {
  const SplinePoint<T> point = spline_point<inverse>(x, b);
  const T log_slope = math::log(point.slope);
  return {point.y, inverse ? -log_slope : log_slope};
}

// Of a point outside of the box, where y is linear in x: `slope` is 1, or that of the box's diagonal.
template <bool inverse, class T>
FK_INLINE SplineOutput<T> spline_tail(T x, T left, T bottom, T slope) {
  const T log_slope = math::log(slope);
  return {inverse ? left + (x - bottom) / slope : bottom + (x - left) * slope, inverse ? -log_slope : log_slope};
}

// dy/dx, and the derivative of its logarithm by t.
template <class T>
struct SplineSlope {
  T slope, log_slope_t, inverse_m;
};

template <class T>
FK_INLINE SplineSlope<T> spline_slope(T t, SplineValue<T> value, SplineBin<T> b) {
  const T u = T(1) - t, ratio = value.slope * value.inverse_q, inverse_m = T(1) / value.m;
  const T m_t = T(2) * (b.last * t + value.slope * (u - t) - b.first * u);
  const T q_t = (b.first + b.last - T(2) * value.slope) * (u - t);
  return {value.m * (ratio * ratio), m_t * inverse_m - T(2) * (q_t * value.inverse_q), inverse_m};
}

// Gradients of y and of log dy/dx. For the inverse x(y, parameters), dx = (dy - f_parameters dparameters) / f_x: they
// are those of f for other gradients.
template <class T>
struct SplineCotangents {
  T input, y, log_slope;  // `input`: the gradient of what the call was given
};

template <bool inverse, class T>
FK_INLINE SplineCotangents<T> spline_cotangents(T grad_y, T grad_log_det, T slope, T log_slope_x) {
  const T grad = inverse ? (grad_y - grad_log_det * log_slope_x) / slope : grad_y * slope + grad_log_det * log_slope_x;
  return {grad, inverse ? -grad : grad_y, inverse ? -grad_log_det : grad_log_det};
}

// The gradients of a bin.
template <class T>
FK_INLINE SplineBin<T> spline_bin_backward(T grad_y, T grad_log_slope, T t, T inverse_width, SplineValue<T> value,
                                           SplineSlope<T> by, SplineBin<T> b) {
  const T u = T(1) - t, p = t * u, s = value.slope, inverse_q = value.inverse_q;
  const T of_t = grad_y * by.slope * b.width + grad_log_slope * by.log_slope_t;
  const T by_end = grad_y * b.height * p * (inverse_q * inverse_q);
  const T of_s = by_end * (b.last * (t * t) - b.first * (u * u)) +
                 T(2) * grad_log_slope * p * (by.inverse_m + (b.first + b.last) / s * inverse_q);
  const T both = T(2) * p * inverse_q;
  return {-of_t * inverse_width,
          -(of_t * t + of_s * s) * inverse_width,
          grad_y,
          grad_y * value.share + of_s * inverse_width,
          by_end * (s * (u * u) + b.last * p) + grad_log_slope * (u * u * by.inverse_m - both),
          -by_end * (s * (t * t) + b.first * p) + grad_log_slope * (t * t * by.inverse_m - both)};
}

template <class T>
struct SplineGradient {
  SplineCotangents<T> cotangents;
  SplineBin<T> bin;  // for a point inside of the box
};

// Of a point of the spline's domain; `tail_slope` is dy/dx outside of the box.
template <bool inverse, class T>
FK_INLINE SplineGradient<T> spline_backward(T x, bool outside, T tail_slope, T grad_y, T grad_log_det, SplineBin<T> b) {
  const T inverse_width = T(1) / b.width;
  const T t = unit(((outside ? b.x : x) - b.x) * inverse_width);
  const SplineValue<T> value = spline_value(t, b.height * inverse_width, b);
  const SplineSlope<T> by = spline_slope(t, value, b);
  const SplineCotangents<T> c = spline_cotangents<inverse>(grad_y, grad_log_det, outside ? tail_slope : by.slope,
                                                           outside ? T(0) : by.log_slope_t * inverse_width);
  return {c, spline_bin_backward(c.y, c.log_slope, t, inverse_width, value, by, b)};
}

}  // namespace flowkernels
