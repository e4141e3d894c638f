// Inline PTX, each piece with what the emulation does instead.
#pragma once

#include <cstring>

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

// 16 bytes of shared memory in one access, which compilers take apart where they move code.
template <class T>
FK_INLINE void write_shared(T* to, const T (&values)[16 / sizeof(T)]) {
  uint32_t part[4];
  std::memcpy(part, values, 16);
#if defined(__CUDACC__)
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "r"(part[0]), "r"(part[1]), "r"(part[2]), "r"(part[3])
               : "memory");
#else
  emulation::check_alignment(to, 16);
  std::memcpy(to, part, 16);
#endif
}

template <class T>
FK_INLINE void read_shared(const T* from, T (&values)[16 / sizeof(T)]) {
  uint32_t part[4];
#if defined(__CUDACC__)
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from)))
               : "memory");
#else
  emulation::check_alignment(from, 16);
  std::memcpy(part, from, 16);
#endif
  std::memcpy(values, part, 16);
}

}  // namespace flowkernels::cuda
