// Moving the numbers of some elements, adjacent in memory, to one row per number and back: transposition in registers,
// where the compiler has shuffles of vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/tiles.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

inline void transpose_plainly(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows,
                              int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_step + r] = from[r * from_step + c];
  }
}

#if defined(__SSE2__)

// Four numbers each of kWide / 4 rows. The shuffles below stay within every four: these are the cheap ones.
#if defined(__AVX512F__)
constexpr int kWide = 16;
using Wide = __m512;
inline Wide low_numbers(Wide a, Wide b) { return _mm512_unpacklo_ps(a, b); }
inline Wide high_numbers(Wide a, Wide b) { return _mm512_unpackhi_ps(a, b); }
inline Wide low_pairs(Wide a, Wide b) { return _mm512_shuffle_ps(a, b, 0x44); }
inline Wide high_pairs(Wide a, Wide b) { return _mm512_shuffle_ps(a, b, 0xee); }
inline Wide join(const float* from, int64_t step) {
  Wide v = _mm512_castps128_ps512(_mm_loadu_ps(from));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(from + step), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(from + 2 * step), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(from + 3 * step), 3);
}
inline __m128 add_parts(Wide v) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
  const __m256 sums = _mm256_add_ps(_mm512_castps512_ps256(v), high);
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}
inline void part(Wide v, float* to, int64_t step) {
  _mm_storeu_ps(to, _mm512_castps512_ps128(v));
  _mm_storeu_ps(to + step, _mm512_extractf32x4_ps(v, 1));
  _mm_storeu_ps(to + 2 * step, _mm512_extractf32x4_ps(v, 2));
  _mm_storeu_ps(to + 3 * step, _mm512_extractf32x4_ps(v, 3));
}
#elif defined(__AVX__)
constexpr int kWide = 8;
using Wide = __m256;
inline Wide low_numbers(Wide a, Wide b) { return _mm256_unpacklo_ps(a, b); }
inline Wide high_numbers(Wide a, Wide b) { return _mm256_unpackhi_ps(a, b); }
inline Wide low_pairs(Wide a, Wide b) { return _mm256_shuffle_ps(a, b, 0x44); }
inline Wide high_pairs(Wide a, Wide b) { return _mm256_shuffle_ps(a, b, 0xee); }
inline Wide join(const float* from, int64_t step) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + step), 1);
}
inline __m128 add_parts(Wide v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
inline void part(Wide v, float* to, int64_t step) {
  _mm_storeu_ps(to, _mm256_castps256_ps128(v));
  _mm_storeu_ps(to + step, _mm256_extractf128_ps(v, 1));
}
#else
constexpr int kWide = 4;
using Wide = __m128;
inline Wide low_numbers(Wide a, Wide b) { return _mm_unpacklo_ps(a, b); }
inline Wide high_numbers(Wide a, Wide b) { return _mm_unpackhi_ps(a, b); }
inline Wide low_pairs(Wide a, Wide b) { return _mm_shuffle_ps(a, b, 0x44); }
inline Wide high_pairs(Wide a, Wide b) { return _mm_shuffle_ps(a, b, 0xee); }
inline Wide join(const float* from, int64_t) { return _mm_loadu_ps(from); }
inline __m128 add_parts(Wide v) { return v; }
inline void part(Wide v, float* to, int64_t) { _mm_storeu_ps(to, v); }
#endif

static_assert(sizeof(Wide) == kVectorBytes, "the vectors of tiles.h");

// Transposes every 4 x 4 numbers of four vectors.
inline void transpose_fours(Wide* v) {
  const Wide a = low_numbers(v[0], v[1]), b = high_numbers(v[0], v[1]);
  const Wide c = low_numbers(v[2], v[3]), d = high_numbers(v[2], v[3]);
  v[0] = low_pairs(a, c);
  v[1] = high_pairs(a, c);
  v[2] = low_pairs(b, d);
  v[3] = high_pairs(b, d);
}

// totals[i] = the sum of the numbers of v[i], which are lost.
inline void sum_fours(Wide* v, float* totals) {
  transpose_fours(v);
  _mm_storeu_ps(totals, add_parts((v[0] + v[1]) + (v[2] + v[3])));
}

// kWide rows of four numbers become four rows of kWide.
inline void four_columns(const float* from, int64_t from_step, float* to, int64_t to_step) {
  Wide v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) v[i] = join(from + i * from_step, 4 * from_step);
  transpose_fours(v);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_step, &v[i], sizeof(Wide));
}

// The other way.
inline void four_rows(const float* from, int64_t from_step, float* to, int64_t to_step) {
  Wide v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) std::memcpy(&v[i], from + i * from_step, sizeof(Wide));
  transpose_fours(v);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) part(v[i], to + i * to_step, 4 * to_step);
}

// The last piece of each direction overlaps the one before it where its size does not divide that of the matrix.
inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows, int64_t columns) {
  const bool wide_rows = rows >= columns;  // the longer side is walked in steps of kWide
  const int64_t longer = wide_rows ? rows : columns, shorter = wide_rows ? columns : rows;
  if (shorter < 4 || longer < kWide) return transpose_plainly(from, from_step, to, to_step, rows, columns);
  for (int64_t i = 0; i < longer; i += kWide) {
    const int64_t wide = smaller(i, longer - kWide);
    for (int64_t j = 0; j < shorter; j += 4) {
      const int64_t four = smaller(j, shorter - 4);
      if (wide_rows) {
        four_columns(from + wide * from_step + four, from_step, to + four * to_step + wide, to_step);
      } else {
        four_rows(from + four * from_step + wide, from_step, to + wide * to_step + four, to_step);
      }
    }
  }
}

#else

constexpr int kWide = 4;
typedef float Wide __attribute__((vector_size(16)));
inline void sum_fours(Wide* v, float* totals) {
  for (int i = 0; i < 4; ++i) totals[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
}

inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows, int64_t columns) {
  transpose_plainly(from, from_step, to, to_step, rows, columns);
}

#endif

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
