// Rows of a stack, each in the registers of a few threads: 1 to 32 in one warp, or a whole block.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/ptx.cuh"
#include "flow/plan.h"

namespace flowkernels::cuda::stack {

constexpr uint32_t kBlockBits = 8;  // of a thread's number in its block

// Of x's type, which a switch picks: rows are read and written once for all layers.
template <class Void>
struct Matrix {
  Void* data;
  int64_t row_stride, column_stride;
  Dtype dtype;
  bool wide;  // neighbours can be accessed together
};

template <class T, class F>
FK_INLINE void with_storage(Dtype dtype, F&& f) {
  if constexpr (sizeof(T) == 8) {
    f(double{});
  } else {
    if (dtype == Dtype::float32) return f(float{});
    if (dtype == Dtype::float16) return f(Half{});
    f(BFloat16{});
  }
}

// How many neighbours a thread takes at a time: 16 bytes of them, if it has as many.
template <class T, int n>
constexpr int kNeighbours = n * sizeof(T) < 16 ? n : 16 / sizeof(T);

// `width` neighbours in one access, or as few as 16 bytes allow.
template <int width, class T, class S>
FK_INLINE void read_neighbours(T* values, const S* from) {
  const Pack<S, width> pack = load_pack<S, width>(from);
  S read[width];
  std::memcpy(read, pack.word, sizeof(read));
#pragma unroll
  for (int j = 0; j < width; ++j) values[j] = widen<T>(read[j]);
}

template <int width, class T, class S>
FK_INLINE void write_neighbours(S* to, const T* values) {
  S written[width];
#pragma unroll
  for (int j = 0; j < width; ++j) written[j] = narrow<S>(values[j]);
  Pack<S, width> pack;
  std::memcpy(pack.word, written, sizeof(written));
  store_pack(to, pack);
}

// The features of a row that one thread keeps, n at most: groups of neighbours where features come in such groups,
// else every `lanes`-th. What is beyond the last feature is 0.
template <class T, int n>
class Lane {
 public:
  static constexpr int kWidth = kNeighbours<T, n>;

  FK_INLINE Lane(uint32_t features, uint32_t lane_bits)
      : features_(features), tile_(kWidth << lane_bits), first_(threadIdx.x & ((1u << lane_bits) - 1)), apart_(1) {
    if (features % kWidth == 0)
      first_ *= kWidth;
    else
      apart_ = 1u << lane_bits;
  }

  template <class S>
  FK_INLINE void load(T (&v)[n], const S* row, int64_t column_stride, bool wide) const {
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] = T(0);
    if (wide) {
#pragma unroll
      for (int j = 0; j < n; j += kWidth)
        if (has(j)) read_neighbours<kWidth>(v + j, row + feature(j));
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j)
        if (has(j)) v[j] = widen<T>(cuda::load(row + feature(j) * column_stride));
    }
  }

  template <class S>
  FK_INLINE void store(const T* v, S* row, bool wide) const {
    if (wide) {
#pragma unroll
      for (int j = 0; j < n; j += kWidth)
        if (has(j)) write_neighbours<kWidth>(row + feature(j), v + j);
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j)
        if (has(j)) cuda::store(row + feature(j), narrow<S>(v[j]));
    }
  }

  FK_INLINE void load(T (&v)[n], const Matrix<const void>& from, int64_t row) const {
    with_storage<T>(from.dtype, [&](auto s) {
      load(v, static_cast<const decltype(s)*>(from.data) + row * from.row_stride, from.column_stride, from.wide);
    });
  }

  FK_INLINE void store(const T* v, const Matrix<void>& to, int64_t row) const {
    with_storage<T>(to.dtype,
                    [&](auto s) { store(v, static_cast<decltype(s)*>(to.data) + row * to.row_stride, to.wide); });
  }

  // Of the j-th number that the thread has.
  FK_INLINE uint32_t feature(int j) const { return first_ + j / kWidth * tile_ + j % kWidth * apart_; }
  FK_INLINE bool has(int j) const { return feature(j) < features_; }

  // Where each number lies is found again and again: kept from layer to layer, it would take half of the registers.
  FK_INLINE Lane again() const {
    Lane lane = *this;
    lane.first_ = opaque(first_);
    return lane;
  }

 private:
  uint32_t features_, tile_, first_, apart_;
};

template <class T, int n>
FK_INLINE T dot(const T (&a)[n], const T (&b)[n]) {
  T sum = a[0] * b[0];
#pragma unroll
  for (int j = 1; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

// Sums over the rows of a warp, that is over lanes whose numbers differ in bits from `lanes` on. In each step a lane
// hands half of its sums to another, which hands over the other half: a third of the exchanges that as many separate
// sums would take. Calls put(i, sum) for each of them in one lane of those.
template <int count, class T, class F>
FK_INLINE void sum_rows_of_warp(const T (&values)[count], uint32_t lanes, F&& put, uint32_t apart = 16, int first = 0) {
  if (apart < lanes) {
#pragma unroll
    for (int i = 0; i < count; ++i) put(first + i, values[i]);
  } else if constexpr (count > 1) {
    const bool upper = threadIdx.x & apart;
    T kept[count / 2];
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const T given = upper ? values[i] : values[i + count / 2];
      kept[i] = (upper ? values[i + count / 2] : values[i]) + __shfl_xor_sync(0xffffffffu, given, apart);
    }
    sum_rows_of_warp(kept, lanes, put, apart / 2, first + (upper ? count / 2 : 0));
  } else {
    T sum = values[0];
    const bool puts = (threadIdx.x & (2 * apart - lanes)) == 0;
    for (; apart >= lanes; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (puts) put(first, sum);
  }
}

// Sums over the threads of a row, the same bits in each of them. All threads of the block call this; `turn` alternates
// between two places, so that a warp may go on to the next sum while others still read this one.
template <class T, int count>
FK_INLINE void sum_row(T (&sums)[count], uint32_t lane_bits, uint32_t& turn) {
  const uint32_t lanes = 1u << lane_bits;
#pragma unroll
  for (uint32_t apart = 16; apart > 0; apart /= 2) {
    if (apart >= lanes) continue;
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], apart);
  }
  if (lanes <= 32) return;

  constexpr uint32_t warps = kThreads / 32;
  FK_SHARED(T, partial, 2 * warps * count);
  T* const here = partial + turn * warps * count;
  turn ^= 1;
  if (threadIdx.x % 32 == 0)
    for (int i = 0; i < count; ++i) here[threadIdx.x / 32 * count + i] = sums[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    sums[i] = here[i];
    for (uint32_t w = 1; w < warps; ++w) sums[i] += here[w * count + i];
  }
}

}  // namespace flowkernels::cuda::stack
