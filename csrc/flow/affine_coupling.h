// Affine coupling of one element: y = m x + t (scale first) or m (x + t) (shift first), with m = a or 1 / a and
// log a = map(s). Dinh et al., "Density estimation using Real NVP" (2017), equation 8; the maps are those of the
// libraries listed in docs/affine_coupling.md.
//
// The inverse is the same formula with other flags: y = m x + t is undone by (y - t) / m, so `divide` and
// `shift_first` flip and the shift changes sign. The gradient needs the input of a scale-first element or the output
// of a shift-first one, and never the shift.
#pragma once

#include <type_traits>

#include "flow/math.h"
#include "flow/plan.h"

namespace flowkernels {

// The order is known to Python (flowkernels/ops/affine_coupling/form.py) and Triton by number.
enum class ScaleMap : int32_t {
  exp = 0,               // log a = s
  tanh = 1,              // log a = c tanh(s / c)
  tanh_scaled = 2,       // log a = c tanh(s)
  atan = 3,              // log a = 0.636 c atan(s)
  atan_legacy = 4,       // log a = 0.636 c atan(s / c)
  sigmoid_centered = 5,  // log a = 2 c (sigmoid(s) - 1/2)
  softclip = 6,          // log a = s / (1 + |s| / c)
  sigmoid = 7,           // a = sigmoid(s + k)
  sigmoid_floor = 8,     // a = sigmoid(s + k) + eps
  softplus = 9,          // a = min(softplus(s) + eps, maximum)
  exp_floor = 10,        // a = exp(ln(1 - eps) + s / 2) + eps
  additive = 11,         // a = 1
  given = 12,            // a = s, log |a|
};

constexpr bool has_bound(ScaleMap map) { return map >= ScaleMap::tanh && map <= ScaleMap::softclip; }

// Calls f with the map as a compile-time constant.
template <class F>
FK_INLINE void with_map(ScaleMap map, F&& f) {
  switch (map) {
#define FK_CASE(name)  \
  case ScaleMap::name: \
    return f(std::integral_constant<ScaleMap, ScaleMap::name>{})
    FK_CASE(exp);
    FK_CASE(tanh);
    FK_CASE(tanh_scaled);
    FK_CASE(atan);
    FK_CASE(atan_legacy);
    FK_CASE(sigmoid_centered);
    FK_CASE(softclip);
    FK_CASE(sigmoid);
    FK_CASE(sigmoid_floor);
    FK_CASE(softplus);
    FK_CASE(exp_floor);
    FK_CASE(additive);
    FK_CASE(given);
#undef FK_CASE
  }
}

// Numbers of one call in its accumulation type, converted on the host: a device multiplication by a double constant
// would bring double-precision instructions into a float kernel.
template <class T>
struct AffineConstants {
  T first;         // k of sigmoid, eps of softplus, ln(1 - eps) of exp_floor
  T second;        // eps of sigmoid_floor and exp_floor, maximum of softplus
  T scale_factor;  // s = scale_factor * raw scale
  T shift_factor;  // t = shift_factor * raw shift: the prescale, negative in an inverse
};

template <class T>
struct Multiplier {
  T m;
  T log_m;
};

// `c` is the bound and `inverse_c` its reciprocal; maps without a bound ignore both.
template <ScaleMap map, class T>
FK_INLINE T log_scale(T s, T c, T inverse_c) {
  if constexpr (map == ScaleMap::tanh) return c * math::tanh(s * inverse_c);
  if constexpr (map == ScaleMap::tanh_scaled) return c * math::tanh(s);
  if constexpr (map == ScaleMap::atan) return T(0.636) * c * math::atan(s);
  if constexpr (map == ScaleMap::atan_legacy) return T(0.636) * c * math::atan(s * inverse_c);
  if constexpr (map == ScaleMap::sigmoid_centered) return c * math::tanh(T(0.5) * s);
  if constexpr (map == ScaleMap::softclip) return s / (T(1) + math::abs(s) * inverse_c);
  return s;
}

template <ScaleMap map, class T>
FK_INLINE T direct_scale(T s, const AffineConstants<T>& k) {
  if constexpr (map == ScaleMap::sigmoid) return math::sigmoid(s + k.first);
  if constexpr (map == ScaleMap::sigmoid_floor) return math::sigmoid(s + k.first) + k.second;
  if constexpr (map == ScaleMap::softplus) {
    const T a = math::softplus(s) + k.first;
    return k.second < a ? k.second : a;
  }
  if constexpr (map == ScaleMap::exp_floor) return math::exp(k.first + T(0.5) * s) + k.second;
  return s;
}

template <ScaleMap map, class T>
FK_INLINE Multiplier<T> multiplier(T s, T c, T inverse_c, const AffineConstants<T>& k, bool divide) {
  if constexpr (map == ScaleMap::additive) return {T(1), T(0)};
  if constexpr (map <= ScaleMap::softclip) {
    const T log_a = log_scale<map>(s, c, inverse_c);
    const T log_m = divide ? -log_a : log_a;
    return {math::exp_normal(log_m), log_m};
  }
  const T a = direct_scale<map>(s, k);
  const T log_a = map == ScaleMap::sigmoid ? math::log_sigmoid(s + k.first) : math::log(math::abs(a));
  return {divide ? T(1) / a : a, divide ? -log_a : log_a};
}

// d log a / ds, and d log a / dc of the bounded maps.
template <class T>
struct Slope {
  T scale;
  T bound;
};

template <ScaleMap map, class T>
FK_INLINE Slope<T> slope(T s, T c, T inverse_c, const AffineConstants<T>& k) {
  if constexpr (map == ScaleMap::tanh) {
    const T u = s * inverse_c;
    const math::TanhSech2<T> h = math::tanh_sech2(u);
    return {h.sech2, h.tanh - u * h.sech2};
  }
  if constexpr (map == ScaleMap::tanh_scaled) {
    const math::TanhSech2<T> h = math::tanh_sech2(s);
    return {c * h.sech2, h.tanh};
  }
  if constexpr (map == ScaleMap::atan) return {T(0.636) * c / (T(1) + s * s), T(0.636) * math::atan(s)};
  if constexpr (map == ScaleMap::atan_legacy) {
    const T u = s * inverse_c;
    const T derivative = T(0.636) / (T(1) + u * u);
    return {derivative, T(0.636) * math::atan(u) - u * derivative};
  }
  if constexpr (map == ScaleMap::sigmoid_centered) {
    const math::TanhSech2<T> h = math::tanh_sech2(T(0.5) * s);
    return {T(0.5) * c * h.sech2, h.tanh};
  }
  if constexpr (map == ScaleMap::softclip) {
    const T u = s * inverse_c;
    const T r = T(1) / (T(1) + math::abs(u));
    return {r * r, (u * r) * (math::abs(u) * r)};
  }
  if constexpr (map == ScaleMap::sigmoid) return {math::sigmoid(-(s + k.first)), T(0)};
  if constexpr (map == ScaleMap::sigmoid_floor) {
    const T v = s + k.first;
    const T p = math::sigmoid(v);
    return {math::sigmoid(-v) * (p / (p + k.second)), T(0)};
  }
  if constexpr (map == ScaleMap::softplus) {
    const T a = math::softplus(s) + k.first;
    return {k.second < a ? T(0) : math::sigmoid(s) / a, T(0)};
  }
  if constexpr (map == ScaleMap::exp_floor) {
    const T e = math::exp(k.first + T(0.5) * s);
    return {T(0.5) * e / (e + k.second), T(0)};
  }
  if constexpr (map == ScaleMap::additive) return {T(0), T(0)};
  if constexpr (map == ScaleMap::given) return {T(1) / s, T(0)};
  return {T(1), T(0)};
}

template <class T>
struct AffineOutput {
  T y;
  T log_m;
};

template <ScaleMap map, class T>
FK_INLINE AffineOutput<T> affine_forward(T x, T raw_scale, T raw_shift, T c, T inverse_c, const AffineConstants<T>& k,
                                         bool divide, bool shift_first) {
  const Multiplier<T> scale = multiplier<map>(k.scale_factor * raw_scale, c, inverse_c, k, divide);
  const T shift = k.shift_factor * raw_shift;
  return {shift_first ? scale.m * (x + shift) : scale.m * x + shift, scale.log_m};
}

template <class T>
struct AffineGradient {
  T x;
  T raw_scale;
  T raw_shift;
  T bound;
};

// `saved` is x of a scale-first element, y of a shift-first one: d log m / d(loss) = grad_y * (m x or y) +
// grad_log_det.
template <ScaleMap map, class T>
FK_INLINE AffineGradient<T> affine_backward(T grad_y, T grad_log_det, T saved, T raw_scale, T c, T inverse_c,
                                            const AffineConstants<T>& k, bool divide, bool shift_first) {
  const T s = k.scale_factor * raw_scale;
  const T m = multiplier<map>(s, c, inverse_c, k, divide).m;
  const Slope<T> d = slope<map>(s, c, inverse_c, k);
  const T grad_x = grad_y * m;
  const T grad_log_m = (shift_first ? grad_y : grad_x) * saved + grad_log_det;
  const T grad_log_a = divide ? -grad_log_m : grad_log_m;
  return {grad_x, k.scale_factor * (d.scale * grad_log_a), k.shift_factor * (shift_first ? grad_x : grad_y),
          d.bound * grad_log_a};
}

// What forward and backward share. A mask holds one byte an element, 1 = passive; the bound, when it is a tensor, has
// the accumulation type and one value per channel, so that the index a View gives into it is the channel's number.
struct AffinePlan {
  Dtype x_dtype;    // of x, y and their gradients
  Dtype raw_dtype;  // of raw scale, raw shift and their gradients
  ScaleMap map;
  bool divide;
  bool shift_first;
  bool has_mask;
  bool has_bound_tensor;
  double bound;  // where it is no tensor
  double first, second, scale_factor, shift_factor;
  int64_t channels;              // length of the bound tensor
  Extent active;                 // the elements that are transformed, masked ones included
  Extent passive;                // those beside them that are copied; size 0 where there are none
  View scale, mask, bound_view;  // over `active`; no `scale` where the map is additive
};

struct AffineForwardPlan {
  AffinePlan common;
  View x, y, shift;           // over `active`
  View x_passive, y_passive;  // over `passive`
};

struct AffineBackwardPlan {
  AffinePlan common;
  View grad_y, saved, grad_x, grad_scale, grad_shift;  // over `active`
  View grad_y_passive, grad_x_passive;                 // over `passive`
  int64_t grad_log_det_stride;
};

// Base addresses of one call; a null pointer is a tensor that is absent or not wanted.
struct AffineForwardCall {
  const void *x, *scale, *shift, *mask, *bound;
  void *y, *log_det;
};

struct AffineBackwardCall {
  const void *grad_y, *grad_log_det, *saved, *scale, *mask, *bound;
  void *grad_x, *grad_scale, *grad_shift, *grad_bound;
};

template <class T>
inline AffineConstants<T> affine_constants(const AffinePlan& plan) {
  return {static_cast<T>(plan.first), static_cast<T>(plan.second), static_cast<T>(plan.scale_factor),
          static_cast<T>(plan.shift_factor)};
}

}  // namespace flowkernels
