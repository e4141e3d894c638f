// The log-density of one number under a normal distribution, by which a split scores what it factors out: Dinh et al.,
// "Density estimation using Real NVP" (2017), section 3.6. Without deviations they are 1.
#pragma once

#include "flow/elementwise.h"
#include "flow/math.h"

namespace flowkernels {

struct SplitOptions {};

template <bool has_std, class T>
FK_INLINE T log_normal(T value, T mean, T log_std) {
  const T v = (value - mean) * (has_std ? math::exp_normal(-log_std) : T(1));
  const T log_sqrt_two_pi = T(0.91893853320467274178);
  const T at_mean = has_std ? -log_sqrt_two_pi - log_std : -log_sqrt_two_pi;
  return T(-0.5) * (v * v) + at_mean;
}

template <class T>
struct LogNormalGradient {
  T value, mean, log_std;
};

template <bool has_std, class T>
FK_INLINE LogNormalGradient<T> log_normal_backward(T grad, T value, T mean, T log_std) {
  const T inverse_std = has_std ? math::exp_normal(-log_std) : T(1);
  const T v = (value - mean) * inverse_std;
  const T of_mean = grad * (v * inverse_std);
  return {-of_mean, of_mean, grad * (v * v - T(1))};
}

}  // namespace flowkernels
