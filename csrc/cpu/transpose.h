// Moving the numbers of some elements, adjacent in memory, to one row per number and back: transposition in registers,
// where the compiler has shuffles of vectors.
#pragma once

#include <cstdint>
#include <cstring>

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

inline void transpose_plainly(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows,
                              int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_step + r] = from[r * from_step + c];
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FLOWKERNELS_SHUFFLES
#endif
#endif

#if defined(FLOWKERNELS_SHUFFLES)

template <int n>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * n)));
};

// Interleaves the lower, or upper, halves of two vectors.
#if defined(__AVX512F__)
inline VectorOf<16>::type interleave_low(VectorOf<16>::type a, VectorOf<16>::type b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline VectorOf<16>::type interleave_high(VectorOf<16>::type a, VectorOf<16>::type b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#endif
#if defined(__AVX2__)
inline VectorOf<8>::type interleave_low(VectorOf<8>::type a, VectorOf<8>::type b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline VectorOf<8>::type interleave_high(VectorOf<8>::type a, VectorOf<8>::type b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#endif
inline VectorOf<4>::type interleave_low(VectorOf<4>::type a, VectorOf<4>::type b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
inline VectorOf<4>::type interleave_high(VectorOf<4>::type a, VectorOf<4>::type b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

// Transposes n x n numbers: log2 n times, every vector of the first half is interleaved with its partner in the second.
template <int n>
inline void transpose_square(const float* from, int64_t from_step, float* to, int64_t to_step) {
  using Vector = typename VectorOf<n>::type;
  Vector a[n], b[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) std::memcpy(&a[i], from + i * from_step, sizeof(Vector));
#pragma GCC unroll 4
  for (int size = n; size > 1; size /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + n / 2]);
      b[2 * i + 1] = interleave_high(a[i], a[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) std::memcpy(to + i * to_step, &a[i], sizeof(Vector));
}

// The last square of each direction overlaps the one before it where n does not divide the size.
template <int n>
void transpose_squares(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows,
                       int64_t columns) {
  for (int64_t r = 0; r < rows; r += n) {
    const int64_t row = r + n <= rows ? r : rows - n;
    for (int64_t c = 0; c < columns; c += n) {
      const int64_t column = c + n <= columns ? c : columns - n;
      transpose_square<n>(from + row * from_step + column, from_step, to + column * to_step + row, to_step);
    }
  }
}

inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows, int64_t columns) {
  const int64_t least = rows < columns ? rows : columns;
#if defined(__AVX512F__)
  if (least >= 16) return transpose_squares<16>(from, from_step, to, to_step, rows, columns);
#endif
#if defined(__AVX2__)
  if (least >= 8) return transpose_squares<8>(from, from_step, to, to_step, rows, columns);
#endif
  if (least >= 4) return transpose_squares<4>(from, from_step, to, to_step, rows, columns);
  transpose_plainly(from, from_step, to, to_step, rows, columns);
}

#else

inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows, int64_t columns) {
  transpose_plainly(from, from_step, to, to_step, rows, columns);
}

#endif

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
