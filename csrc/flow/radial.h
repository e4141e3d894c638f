// A radial flow: y = z0 + m v with v = z - z0, r = |v| and m = 1 + (p - alpha) / (alpha + r) = (r + p) / (alpha + r),
// p = softplus(beta). Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equations 13 and 14
// and appendix A.2. The determinant is m^(D - 1) q with q = d(m r)/dr. What is here is about the scalars of one row
// and layer; the sums over features belong to the backends.
#pragma once

#include <limits>

#include "flow/math.h"
#include "flow/stack.h"

namespace flowkernels {

struct RadialOptions {};

// The parameters of one layer; alpha that is not positive is NaN.
template <class T>
struct RadialLayer {
  T alpha, p;

  static FK_INLINE RadialLayer make(T alpha, T beta) {
    return {T(0) < alpha ? alpha : std::numeric_limits<T>::quiet_NaN(), math::softplus(beta)};
  }
};

// Quotients are formed before their product, which could overflow.
template <class T>
struct RadialGrowth {
  T reciprocal;  // 1 / (alpha + r)
  T m, q;

  static FK_INLINE RadialGrowth at(T r, RadialLayer<T> layer) {
    const T t = T(1) / (layer.alpha + r);
    const T q = (r * t) * ((r + T(2) * layer.alpha) * t) + (layer.alpha * t) * (layer.p * t);
    return {t, (r + layer.p) * t, q};
  }
};

// The root r >= 0 of m r = rho, which is r^2 + (p - rho) r - alpha rho = 0, without cancellation.
template <class T>
FK_INLINE T radial_radius(T rho, RadialLayer<T> layer) {
  const T half = layer.p - rho;
  const T root = math::sqrt(half * half + T(4) * layer.alpha * rho);
  return T(0) < half ? T(2) * layer.alpha * rho / (half + root) : T(0.5) * (root - half);
}

// What one row and layer adds to gradients. With g that of the layer's output:
// grad z = scale g + outward v; grad z0 = shrink g - outward v; alpha and beta get of_alpha and of_p sigmoid(beta).
template <class T>
struct RadialGradient {
  T scale, outward, shrink, of_alpha, of_p;
};

// `projection` is g'v with v = z - z0, z the point on the latent side of the inverse too, and `features` is D. An
// inverse is differentiated by the implicit function theorem.
template <class T>
FK_INLINE RadialGradient<T> radial_backward(T r, RadialLayer<T> layer, T projection, T grad_log_det, T features,
                                            bool inverse) {
  const RadialGrowth<T> growth = RadialGrowth<T>::at(r, layer);
  const T t = growth.reciprocal, alpha = layer.alpha, p = layer.p;
  const T per_m = T(1) / growth.m, per_q = T(1) / growth.q;
  const T of_log_m = grad_log_det * (features - T(1));
  T of_m = inverse ? -(projection + of_log_m) * per_m : projection + of_log_m * per_m;
  const T of_q = inverse ? -grad_log_det * per_q : grad_log_det * per_q;
  const T m_r = ((alpha - p) * t) * t;
  T of_r = of_m * m_r + of_q * (T(2) * (alpha * t)) * m_r;
  if (inverse) {  // r follows from rho = m r
    of_r *= per_q;
    of_m -= of_r * r;
  }
  const T q_alpha = ((r * t) * ((p - T(2) * alpha) * t) - (alpha * t) * (p * t)) * t;
  return {inverse ? per_m : growth.m, T(0) < r ? of_r / r : T(0), inverse ? (p - alpha) / (r + p) : (alpha - p) * t,
          of_q * q_alpha - of_m * (growth.m * t), (of_m + of_q * (alpha * t)) * t};
}

}  // namespace flowkernels
