// Elementary functions, each within 4 ulp of the exact value over its whole range (docs/numerics.md has the
// measured errors), exact at 0 and at infinity, NaN in gives NaN out, subnormals kept unless a comment says otherwise.
//
// On the device they are CUDA's own without fast-math. On the host the float versions are branch-free polynomials
// that compilers vectorise, and the double versions are the C library's. `hi < x ? hi : x` keeps a NaN in x, which
// std::min does not; `fmaf` is never written because without FMA hardware it is a library call, whereas ordinary
// contraction of a * b + c gives FMA where it exists. Polynomials of exp and log go up in steps of the square: as many
// operations as Horner's in a shorter chain, which matters because a processor overlaps only a few iterations.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "flow/inline.h"

namespace flowkernels::math {

template <class T>
struct TanhSech2 {
  T tanh;
  T sech2;
};

template <class T>
struct Logs {
  T x;
  T y;
};

#if defined(__CUDACC__)

FK_INLINE float exp(float x) { return ::expf(x); }
FK_INLINE double exp(double x) { return ::exp(x); }
FK_INLINE float exp_normal(float x) { return ::expf(x); }
FK_INLINE double exp_normal(double x) { return ::exp(x); }
FK_INLINE float log(float x) { return ::logf(x); }
FK_INLINE double log(double x) { return ::log(x); }
FK_INLINE Logs<float> logs_of_shares(float x, float y) { return {::logf(x), ::logf(y)}; }
FK_INLINE Logs<double> logs_of_shares(double x, double y) { return {::log(x), ::log(y)}; }
FK_INLINE float log1p_unit(float u) { return ::log1pf(u); }
FK_INLINE double log1p_unit(double u) { return ::log1p(u); }
FK_INLINE float expm1_positive(float y) { return ::expm1f(y); }
FK_INLINE double expm1_positive(double y) { return ::expm1(y); }
FK_INLINE float tanh(float x) { return ::tanhf(x); }
FK_INLINE double tanh(double x) { return ::tanh(x); }
FK_INLINE float atan(float x) { return ::atanf(x); }
FK_INLINE double atan(double x) { return ::atan(x); }
FK_INLINE float abs(float x) { return ::fabsf(x); }
FK_INLINE double abs(double x) { return ::fabs(x); }
FK_INLINE float sqrt(float x) { return ::sqrtf(x); }
FK_INLINE double sqrt(double x) { return ::sqrt(x); }

#else

FK_INLINE uint32_t bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

FK_INLINE float from_bits(uint32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

FK_INLINE float abs(float x) { return from_bits(bits(x) & 0x7fffffffu); }
FK_INLINE double abs(double x) { return std::fabs(x); }
FK_INLINE float sqrt(float x) { return std::sqrt(x); }
FK_INLINE double sqrt(double x) { return std::sqrt(x); }

FK_INLINE float copy_sign(float magnitude, float sign) {
  return from_bits((bits(magnitude) & 0x7fffffffu) | (bits(sign) & 0x80000000u));
}

// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + tail. Adding 1.5 * 2^23 rounds to an integer that then sits in
// the low mantissa bits, here with a bias that the caller wants; the two-step subtraction (Cody and Waite) keeps r
// exact. The polynomial is the one of its degree with the least relative error of e^r: 3.1e-9.
struct ExpParts {
  uint32_t biased;  // n + bias in the low bits
  float tail;
};

// n is that of `bounded`, which is x or, where x is large, smaller.
template <int bias>
FK_INLINE ExpParts exp_parts(float x, float bounded) {
  const float magic = 12582912.0f + bias;
  const float shifted = bounded * 1.44269504088896341f + magic;
  const float n = shifted - magic;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  const float square = r * r;
  const float low = 1.6666519642e-1f * r + 4.9999994040e-1f;
  const float high = 8.3687808365e-3f * r + 4.1668392718e-2f;
  const float p = (1.3814467238e-3f * square + high) * square + low;
  return {bits(shifted), p * square + r};
}

// x, or 89 where it is more, by which n stays what e^89 has while the tail grows without limit. Compared as integers,
// because vector units take the smaller of two integers, but not of two floats with this treatment of NaN, in one
// instruction. The bits of 89 are written out: between two variables g++ chooses by masks, all that follows twice.
FK_INLINE float at_most_89(float x) {
  const int32_t own = static_cast<int32_t>(bits(x));
  return from_bits(static_cast<uint32_t>(own < 0x42b20000 ? own : 0x42b20000));
}

// The power of two is applied as two factors, so that overflow reaches infinity and subnormals round once.
FK_INLINE float exp(float x) {
  const ExpParts e = exp_parts<254>(x, at_most_89(x));
  const uint32_t half = e.biased >> 1;
  const float result = (1.0f + e.tail) * from_bits(half << 23) * from_bits((e.biased - half) << 23);
  return x < -104.0f ? 0.0f : result;
}

// 2 e^r times 2^(n - 1), which overflows where e^x does; 0 below e^-86.9 = 1.8e-38.
FK_INLINE float exp_in_one_factor(float x, float bounded) {
  const ExpParts e = exp_parts<126>(x, bounded);
  const float result = (2.0f + 2.0f * e.tail) * from_bits(e.biased << 23);
  return x < -86.9f ? 0.0f : result;
}

// e^x, and 0 below e^-86.9, which takes fewer instructions than subnormals do.
FK_INLINE float exp_normal(float x) { return exp_in_one_factor(x, at_most_89(x)); }

// The same for x <= 0, which needs no bound.
FK_INLINE float exp_negative(float x) { return exp_in_one_factor(x, x); }

// e^y - 1 for 0 <= y <= 88.
FK_INLINE float expm1_positive(float y) {
  const ExpParts e = exp_parts<127>(y, y);
  const float scale = from_bits(e.biased << 23);
  return e.tail * scale + (scale - 1.0f);
}

FK_INLINE float tanh(float x) {
  const float magnitude = 2.0f * abs(x);
  const float t = expm1_positive(87.0f < magnitude ? 87.0f : magnitude);  // as in tanh_sech2, for both at once
  return copy_sign(t / (t + 2.0f), x);
}

// Subnormals are scaled up first; zero, negative, infinite and NaN arguments are put right at the end.
FK_INLINE float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.0f : x;
  const uint32_t b = bits(scaled) - 0x3f3504f3u;  // the mantissa ends up in [sqrt(1/2), sqrt(2))
  const int32_t exponent = static_cast<int32_t>(b) >> 23;
  const float m = from_bits((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float e = static_cast<float>(tiny ? exponent - 23 : exponent);
  const float square = m * m;
  float p = 7.0376836292e-2f;
  p = p * square + (-1.1514610310e-1f * m + 1.1676998740e-1f);
  p = p * square + (-1.2420140846e-1f * m + 1.4249322787e-1f);
  p = p * square + (-1.6668057665e-1f * m + 2.0000714765e-1f);
  p = p * square + (-2.4999993993e-1f * m + 3.3333331174e-1f);
  float y = m * square * p;
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * square;
  float result = m + y + e * 0.693359375f;
  result = x == 0.0f ? -HUGE_VALF : result;
  result = x < 0.0f ? std::numeric_limits<float>::quiet_NaN() : result;
  return x < HUGE_VALF ? result : x;  // +inf and NaN pass through
}

// log m for 1/2 <= m <= 1 by the polynomial of its degree with the least absolute error: 4.5e-9, beside roundings of
// numbers below 0.7. NaN stays NaN.
FK_INLINE float log_of_mantissa(float m) {
  const float t = m - 0.75f;
  const float square = t * t;
  float p = 1.9687933922f * t + -1.5747842789f;
  p = p * square + (1.0343486071f * t + -9.1765290499e-1f);
  p = p * square + (8.4393239021e-1f * t + -7.9055392742e-1f);
  p = p * square + (7.9010868073e-1f * t + -8.8888549805e-1f);
  return p * square + (1.3333333731f * t + -2.8768208623e-1f);
}

// The logarithms of x and y with x + y = 1, each as exact as the smaller of the two, which is log 1/2 or less:
// where they are added or subtracted, as a log-odds is, no more is seen; that of 1 is -1e-8. A share of 0 has -inf,
// and so has one below the smallest normal number; where one is negative or both are NaN, one of the logarithms at
// least is NaN.
FK_INLINE Logs<float> logs_of_shares(float x, float y) {
  const bool x_is_less = x < y;
  const float less = x_is_less ? x : y, more = x_is_less ? y : x;
  const uint32_t b = bits(less);
  const float exponent = static_cast<float>(static_cast<int32_t>(b - 0x3f000000u) >> 23);
  float log_less = exponent * 0.693147181f + log_of_mantissa(from_bits((b & 0x007fffffu) | 0x3f000000u));
  log_less = less < 1.17549435e-38f ? -HUGE_VALF : log_less;
  log_less = less < 0.0f ? std::numeric_limits<float>::quiet_NaN() : log_less;
  const float log_more = log_of_mantissa(more);
  return {x_is_less ? log_less : log_more, x_is_less ? log_more : log_less};
}

// log(1 + u) for 0 <= u <= 1, as 2 atanh(u / (2 + u)).
FK_INLINE float log1p_unit(float u) {
  const float s = u / (2.0f + u);
  const float q = s * s;
  float p = 2.0801367541e-01f;
  p = p * q + 1.7460892886e-01f;
  p = p * q + 2.2265080335e-01f;
  p = p * q + 2.8570291140e-01f;
  p = p * q + 4.0000010971e-01f;
  p = p * q + 6.6666666650e-01f;
  return 2.0f * s + s * (q * p);
}

FK_INLINE float atan(float x) {
  const float a = abs(x);
  const bool large = a > 2.41421356f;
  const bool middle = a > 0.414213562f;
  const float numerator = large ? -1.0f : (middle ? a - 1.0f : a);
  const float denominator = large ? a : (middle ? a + 1.0f : 1.0f);
  const float offset = large ? 1.57079632679f : (middle ? 0.785398163397f : 0.0f);
  const float s = numerator / denominator;
  const float q = s * s;
  float p = -6.4593762778e-02f;
  p = p * q + 1.0746298434e-01f;
  p = p * q - 1.4264232553e-01f;
  p = p * q + 1.9999550076e-01f;
  p = p * q - 3.3333331813e-01f;
  return copy_sign(offset + (s + s * (q * p)), x);
}

FK_INLINE double exp(double x) { return std::exp(x); }
FK_INLINE double exp_normal(double x) { return std::exp(x); }
FK_INLINE double exp_negative(double x) { return std::exp(x); }
FK_INLINE double log(double x) { return std::log(x); }
FK_INLINE Logs<double> logs_of_shares(double x, double y) { return {std::log(x), std::log(y)}; }
FK_INLINE double log1p_unit(double u) { return std::log1p(u); }
FK_INLINE double expm1_positive(double y) { return std::expm1(y); }
FK_INLINE double tanh(double x) { return std::tanh(x); }
FK_INLINE double atan(double x) { return std::atan(x); }

#endif

// tanh and its derivative from one exponential. 1 - tanh^2 would be 0 beyond 9 in float; with t = e^(2|x|) - 1 the
// derivative is 4 r (1 - r) with r = 1 / (t + 2). It is taken as 0 where it would be below the smallest normal number.
template <class T>
FK_INLINE TanhSech2<T> tanh_sech2(T x) {
  const T limit = sizeof(T) == 4 ? T(87) : T(708);
  const T magnitude = T(2) * abs(x);
  const T t = expm1_positive(limit < magnitude ? limit : magnitude);
  const T r = T(1) / (t + T(2));
  const T tanh = t * r;
  const T sech2 = (T(4) * r) * (T(1) - r);
  return {x < T(0) ? -tanh : tanh, limit < magnitude ? T(0) : sech2};
}

// From e = exp(-|x|), neither form overflows nor cancels.
template <class T>
FK_INLINE T sigmoid(T x) {
  const T e = exp(-abs(x));
  const T r = T(1) / (T(1) + e);
  return x < T(0) ? e * r : r;
}

template <class T>
FK_INLINE T log_sigmoid(T x) {
  return (x < T(0) ? x : T(0)) - log1p_unit(exp(-abs(x)));
}

template <class T>
FK_INLINE T softplus(T x) {
  return (T(0) < x ? x : T(0)) + log1p_unit(exp(-abs(x)));
}

}  // namespace flowkernels::math
