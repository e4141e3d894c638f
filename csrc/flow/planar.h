// A planar flow: y = z + u' h(a) with a = w'z + b. Rezende and Mohamed, "Variational Inference with Normalizing
// Flows" (2015), equations 10 to 12; u' ("corrected u") is that of appendix A.1. What is here is about the scalars
// of one row and layer; the sums over features belong to the backends.
//
// The determinant 1 + w'u' h'(a) is computed as (1 - h') + h' p with p = 1 + w'u' = softplus(w'u), because the other
// form cancels to 0 in float where w'u < -17.
#pragma once

#include <limits>
#include <type_traits>

#include "flow/math.h"
#include "flow/stack.h"

namespace flowkernels {

enum class Activation : int32_t { tanh = 0, leaky_relu = 1 };

struct PlanarOptions {
  Activation activation;
  double negative_slope;
};

// Calls f with the activation as a compile-time constant.
template <class F>
FK_INLINE void with_activation(Activation activation, F&& f) {
  if (activation == Activation::tanh) return f(std::integral_constant<Activation, Activation::tanh>{});
  f(std::integral_constant<Activation, Activation::leaky_relu>{});
}

// u' = u + factor w, and p, which is kept from underflowing to a determinant of 0. Where w = 0 there is nothing to
// correct.
template <class T>
struct PlanarConstraint {
  T factor;
  T p;
};

// From s = w'u and square = |w|^2.
template <class T>
FK_INLINE PlanarConstraint<T> planar_constraint(T s, T square) {
  const T tail = math::log1p_unit(math::exp(-math::abs(s)));
  const T excess = (s < T(0) ? tail - s : tail) - T(1);  // softplus(-s) - 1
  const T softplus = s < T(0) ? tail : tail + s;
  const T least = std::numeric_limits<T>::min();
  const T p = softplus < least ? least : softplus;
  return {square == T(0) ? T(0) : excess / square, square == T(0) ? T(1) : p};
}

// What is still missing from u' = u + factor w as it was rounded, in units of w: where u is large and against w, factor
// alone does not give w'u' to the last bit. From along = w'u'.
template <class T>
FK_INLINE T planar_constraint_rest(T along, T square, T p) {
  return square == T(0) ? T(0) : ((p - T(1)) - along) / square;
}

// How the gradients of u' and log p reach u and w: grad_u = grad_u' + of_s w and
// grad_w = factor (grad_u' - 2 along w) + of_s u.
template <class T>
struct PlanarConstraintGradient {
  T factor, along, of_s;
};

// From s, square, projection = w'grad_u' and the gradient of log p, whose slope sigmoid(s) / softplus(s) tends to 1.
template <class T>
FK_INLINE PlanarConstraintGradient<T> planar_constraint_backward(T s, T square, T projection, T grad_log_p) {
  const T factor = planar_constraint(s, square).factor;
  const T along = square == T(0) ? T(0) : projection / square;
  const T slope = s < T(-40) ? T(1) : math::sigmoid(s) / math::softplus(s);
  const T of_s = grad_log_p * slope - along * math::sigmoid(-s);
  return {factor, along, square == T(0) ? T(0) : of_s};
}

template <class T>
struct PlanarPoint {
  T h, slope, rest;  // h(a), h'(a), 1 - h'(a)
};

// Structs are passed by value: in a loop for vectors, what has an address has it in memory.
template <class T>
FK_INLINE T planar_det(PlanarPoint<T> point, T p) {
  return point.rest + point.slope * p;
}

template <Activation activation, class T>
FK_INLINE PlanarPoint<T> planar_point(T a, T negative_slope) {
  if constexpr (activation == Activation::leaky_relu) {
    const T slope = T(0) < a ? T(1) : negative_slope;
    return {slope * a, slope, T(1) - slope};
  } else {
    const math::TanhSech2<T> f = math::tanh_sech2(a);
    return {f.tanh, f.sech2, f.tanh * f.tanh};
  }
}

// a - tanh a, which the difference itself would not know near 0.
template <class T>
FK_INLINE T without_tanh(T a, T tanh) {
  const T square = a * a;
  T series;
  if constexpr (sizeof(T) == 4) {
    series = T(1382.0 / 155925);
  } else {
    series = T(-18888466084.0 / 194896477400625);
    series = series * square + T(443861162.0 / 1856156927625);
    series = series * square + T(-6404582.0 / 10854718875);
    series = series * square + T(929569.0 / 638512875);
    series = series * square + T(-21844.0 / 6081075);
    series = series * square + T(1382.0 / 155925);
  }
  series = series * square + T(-62.0 / 2835);
  series = series * square + T(17.0 / 315);
  series = series * square + T(-2.0 / 15);
  series = series * square + T(1.0 / 3);
  return math::abs(a) < T(0.25) ? a * square * series : a - tanh;
}

// The inverse of a tanh layer finds the root a of g(a) = (a - tanh a) + p tanh a = c, where c = w'y + b. Beyond 0, g
// is concave (p > 1) or convex, so Newton's steps from the right side go one way; the root is reached when rounding
// alone would turn them. A caller repeats `step`, with c >= 0, until it changes nothing, at most kSteps times: what is
// found does not depend on how often it goes on after that. The sign of c is that of a.
template <class T>
struct PlanarSolver {
  static constexpr int kSteps = 64;

  static FK_INLINE T start(T c, T p) {
    const T linear = c / p;
    const T shifted = c - (p - T(1));
    const T below = linear < shifted ? shifted : linear;
    T above = shifted < linear ? shifted : linear;
    // a - tanh a > a^3 / 5 for a < 1; a third of the logarithm is a cube root, good enough to start from.
    const T cubic = math::exp(math::log(T(5.01) * c) * T(1.0 / 3));
    const T smaller = above < cubic ? above : cubic;  // not NaN where c and p are 0
    above = cubic < T(1) ? smaller : above;
    return T(1) < p ? below : above;
  }

  static FK_INLINE T step(T a, T c, T p) {
    const PlanarPoint<T> point = planar_point<Activation::tanh>(a, T(0));
    const T change = (c - (without_tanh(a, point.h) + p * point.h)) / planar_det(point, p);
    const T onward = T(1) < p ? change : -change;
    return T(0) < onward ? a + change : a;
  }
};

template <class T>
FK_INLINE T planar_solve_leaky_relu(T c, T p, T negative_slope) {
  return c / (T(0) < c ? p : (T(1) - negative_slope) + negative_slope * p);
}

// What one row and layer adds to gradients. With g that of the layer's output: grad z = g + along w; w's gradient
// gets along times the layer's input, u' gets of_u g, b gets along, log p gets of_log_p. The input of an inverse layer
// is y.
template <class T>
struct PlanarGradient {
  T along, of_u, of_log_p;
};

// `projection` is u'g. An inverse is differentiated by the implicit function theorem.
template <Activation activation, class T>
FK_INLINE PlanarGradient<T> planar_backward(PlanarPoint<T> point, T p, T projection, T grad_log_det, bool inverse) {
  const T reciprocal = T(1) / planar_det(point, p);
  const T ratio = point.slope * reciprocal;
  const T bend = activation == Activation::tanh ? T(-2) * point.h * (p - T(1)) * ratio : T(0);
  const T along = projection * point.slope + grad_log_det * bend;
  const T of_log_p = grad_log_det * (point.slope * (p * reciprocal));
  if (!inverse) return {along, point.h, of_log_p};
  const T through = -along * reciprocal;
  return {through, -point.h, -point.h * through * p - of_log_p};
}

}  // namespace flowkernels
