// Sums over the rows of a tile. Each is added up in an order that depends on the row's size alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/tiles.h"
#include "cpu/transpose.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

// The sum of n lanes, n a power of two, by halves.
template <int n, class T>
T fold(const T* lanes) {
  if constexpr (n == 4) {
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  } else {
    T half[n / 2];
    for (int j = 0; j < n / 2; ++j) half[j] = lanes[j] + lanes[j + n / 2];
    return fold<n / 2>(half);
  }
}

// n running sums, of the values whose indices are equal modulo n. As vectors, because g++ would write an array to
// memory in every step.
template <int n, class T>
struct Lanes {
  T lane[n];

  Lanes(const T* values, int64_t count) {
    typedef T Vector __attribute__((vector_size(kVectorBytes)));
    constexpr int width = kVectorBytes / sizeof(T), vectors = n / width;
    Vector running[vectors] = {};
    int64_t i = 0;
    for (; i + n <= count; i += n) {
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) {
        Vector next;
        std::memcpy(&next, values + i + v * width, sizeof next);
        running[v] += next;
      }
    }
    std::memcpy(lane, running, sizeof lane);
    for (int j = 0; i + j < count; ++j) lane[j] += values[i + j];
  }
};

template <class T>
FK_INLINE T sum_few(const T* values, int64_t count) {
  T total = 0;
  for (int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

// Sums in two levels: lanes, then those by halves. A single running sum in float32 is twice as wrong as torch's.
template <class T>
double sum(const T* values, int64_t count) {
  if (count < 16) return sum_few(values, count);
  if (count <= 64) return fold<16>(Lanes<16, T>(values, count).lane);
  return fold<64>(Lanes<64, T>(values, count).lane);
}

// The sums of rows of a few whole vectors, four at a time: to sum across the lanes of one takes as long as the rest.
inline void sum_short_rows(const float* terms, int64_t rows, int64_t length, float* sums) {
  for (int64_t first = 0; first < rows; first += 4) {
    const int64_t count = smaller(4, rows - first);
    Wide lanes[4] = {};
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      if (r >= count) continue;
      const float* row = terms + (first + r) * length;
      for (int64_t i = 0; i < length; i += kWide) {
        Wide next;
        std::memcpy(&next, row + i, sizeof next);
        lanes[r] += next;
      }
    }
    float totals[4];
    sum_fours(lanes, totals);
    std::memcpy(sums + first, totals, count * sizeof(float));
  }
}

// Writes the sum of each whole row of a tile.
template <class T>
void sum_rows(const Tile& tile, const T* terms, T* log_det) {
  const int64_t rows = tile.size[0], length = tile.elements() / rows;
  T* sums = log_det + tile.start[0];
  if constexpr (sizeof(T) == 4) {
    if (length % kWide == 0 && length <= 64) return sum_short_rows(terms, rows, length, sums);
  }
  if (length >= 16) {
    for (int64_t r = 0; r < rows; ++r) sums[r] = static_cast<T>(sum(terms + r * length, length));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) sums[r] = sum_few(terms + r * length, length);  // without a call for each
}

// out[i] = the sum over p of partial[i * step + p * part_step], in order.
template <class T>
void add_up(int64_t count, int64_t step, int64_t parts, int64_t part_step, const double* partial, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    double total = 0;
    for (int64_t p = 0; p < parts; ++p) total += partial[i * step + p * part_step];
    out[i] = static_cast<T>(total);
  }
}

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
