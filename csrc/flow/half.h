// The 16-bit storage types of the host: conversions only, because every kernel computes in float.
#pragma once

#include <cstdint>

#include "flow/math.h"

namespace flowkernels {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

#if !defined(__CUDACC__)

FK_INLINE float up(Half h) {
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  // The multiplication re-biases the exponent and renormalises subnormals; infinity and NaN are put right after it.
  const uint32_t scaled = math::bits(math::from_bits(magnitude) * 5.192296858534828e33f);
  const uint32_t special = magnitude | 0x7f800000u;
  return math::from_bits((magnitude >= 0x0f800000u ? special : scaled) | sign);
}

FK_INLINE Half down_half(float x) {
  const uint32_t sign = math::bits(x) & 0x80000000u;
  const uint32_t magnitude = math::bits(x) ^ sign;
  // Subnormal results: adding 0.5 lets the float adder round to 2^-24.
  const uint32_t small = math::bits(math::from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t h = magnitude < 0x38800000u ? small : normal;
  h = magnitude >= 0x477ff000u ? 0x7c00u : h;
  h = magnitude > 0x7f800000u ? 0x7e00u : h;
  return {static_cast<uint16_t>(h | (sign >> 16))};
}

FK_INLINE float up(BFloat16 h) { return math::from_bits(static_cast<uint32_t>(h.bits) << 16); }

FK_INLINE BFloat16 down_bfloat16(float x) {
  const uint32_t b = math::bits(x);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  const bool nan = (b & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

#endif

}  // namespace flowkernels
