// Inline PTX, each piece with what the emulation does instead.
#pragma once

#include "cuda/launch.cuh"

namespace flowkernels::cuda {

// The value itself, but unknown to the compiler: what is computed from it inside a loop stays there, where it would
// otherwise be moved out into registers that the loop cannot spare.
FK_INLINE int64_t opaque(int64_t value) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(value));
#endif
  return value;
}

FK_INLINE uint32_t opaque(uint32_t value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

}  // namespace flowkernels::cuda
