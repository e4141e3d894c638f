// Everything that kernels read from and write to global memory passes through here, up to 16 bytes at a time. The
// emulation checks the alignment of each access and counts the 32-byte sectors that it touches.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/launch.cuh"
#include "flow/half.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace flowkernels {

FK_INLINE float up(Half h) { return __half2float(__ushort_as_half(h.bits)); }
FK_INLINE float up(BFloat16 h) { return __uint_as_float(static_cast<uint32_t>(h.bits) << 16); }
FK_INLINE Half down_half(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
FK_INLINE BFloat16 down_bfloat16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }

}  // namespace flowkernels
#endif

namespace flowkernels::cuda {

// What a kernel computes in, by the type of x.
template <class S>
using Accumulation = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class T, class S>
FK_INLINE T widen(S value) {
  if constexpr (std::is_class_v<S>)
    return up(value);
  else
    return static_cast<T>(value);
}

template <class S, class T>
FK_INLINE S narrow(T value) {
  if constexpr (std::is_same_v<S, Half>)
    return down_half(value);
  else if constexpr (std::is_same_v<S, BFloat16>)
    return down_bfloat16(value);
  else
    return static_cast<S>(value);
}

// An unsigned value of 1 to 16 bytes, which the machine reads and writes in one access.
template <int bytes>
struct alignas(bytes) Word {
  uint32_t part[bytes / 4];
};
template <>
struct Word<1> {
  uint8_t part;
};
template <>
struct Word<2> {
  uint16_t part;
};

constexpr int access_bytes(int bytes) { return bytes < 16 ? bytes : 16; }

template <class W>
FK_INLINE W read(const void* address) {
#if defined(__CUDACC__)
  return *static_cast<const W*>(address);
#else
  emulation::touch(address, sizeof(W), alignof(W), emulation::Access::load);
  W word;
  std::memcpy(&word, address, sizeof(W));
  return word;
#endif
}

template <class W>
FK_INLINE void write(void* address, const W& word) {
#if defined(__CUDACC__)
  *static_cast<W*>(address) = word;
#else
  emulation::touch(address, sizeof(W), alignof(W), emulation::Access::store);
  std::memcpy(address, &word, sizeof(W));
#endif
}

template <class S>
FK_INLINE S load(const S* from) {
  const Word<sizeof(S)> word = read<Word<sizeof(S)>>(from);
  S value;
  std::memcpy(&value, &word, sizeof(S));
  return value;
}

template <class S>
FK_INLINE void store(S* to, S value) {
  Word<sizeof(S)> word;
  std::memcpy(&word, &value, sizeof(S));
  write(to, word);
}

template <class S>
struct Pair {
  S value[2];
};

// A queue of n values in as few registers as hold them; two are taken from the front, and two may be put in the place
// that this leaves at the back. A loop over pairs is a quarter of the code of n copies of a formula, and an array
// indexed by its counter would lie in memory.
template <class S, int n>
struct Pack {
  static constexpr int words = n * sizeof(S) / 4, step = 2 * sizeof(S) / 4;
  uint32_t word[words];

  FK_INLINE Pair<S> take() {
    Pair<S> pair;
    std::memcpy(&pair, word, sizeof(pair));
#pragma unroll
    for (int i = 0; i + step < words; ++i) word[i] = word[i + step];
    return pair;
  }

  FK_INLINE void put(const Pair<S>& pair) { std::memcpy(word + words - step, &pair, sizeof(pair)); }
};

// Of up to 8 bytes, the first in the lowest bits.
template <int n>
struct Pack<uint8_t, n> {
  uint64_t word[1];

  FK_INLINE Pair<uint8_t> take() {
    const Pair<uint8_t> pair{{static_cast<uint8_t>(word[0]), static_cast<uint8_t>(word[0] >> 8)}};
    word[0] >>= 16;
    return pair;
  }

  FK_INLINE void put(const Pair<uint8_t>& pair) {
    word[0] |= static_cast<uint64_t>(pair.value[0] | pair.value[1] << 8) << (8 * n - 16);
  }
};

// The first of the n values lies at a multiple of their size in bytes, or of 16.
template <class S, int n>
FK_INLINE Pack<S, n> load_pack(const S* from) {
  constexpr int bytes = access_bytes(n * sizeof(S)), count = n * sizeof(S) / bytes;
  Pack<S, n> pack{};
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const auto word = read<Word<bytes>>(reinterpret_cast<const char*>(from) + i * bytes);
    std::memcpy(pack.word + i * bytes / 4, &word, bytes);
  }
  return pack;
}

template <class S, int n>
FK_INLINE void store_pack(S* to, const Pack<S, n>& pack) {
  constexpr int bytes = access_bytes(n * sizeof(S)), count = n * sizeof(S) / bytes;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    Word<bytes> word;
    std::memcpy(&word, pack.word + i * bytes / 4, bytes);
    write(reinterpret_cast<char*>(to) + i * bytes, word);
  }
}

}  // namespace flowkernels::cuda
