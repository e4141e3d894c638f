// Sums in a fixed order: the same bits from run to run, whatever the size of the batch.
#pragma once

#include "cuda/box.cuh"

namespace flowkernels::cuda {

// The sum over the lanes of a row, in the first of them. All threads of the block call this, and only once, because
// nothing keeps a second call from overwriting what is still being read.
template <class T>
FK_INLINE T sum_lanes(T value, const Mapping& m) {
  const uint32_t columns = 1u << m.column_bits, tile = columns << m.lane_bits;
  for (uint32_t apart = (tile < 32 ? tile : 32) / 2; apart >= columns; apart /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, apart);
  if (tile <= 32) return value;

  FK_SHARED(T, partial, kThreads);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane < columns) partial[warp * columns + lane] = value;
  __syncthreads();
  T sum = T(0);
  if (threadIdx.x < columns)
    for (uint32_t w = 0; w < kThreads / 32; ++w) sum += partial[w * columns + threadIdx.x];
  return sum;
}

template <class T>
struct SumRows {
  const T* values;  // (rows, length)
  T* sums;
  int64_t rows, length;
};

// One block per row.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_rows_kernel(const __grid_constant__ SumRows<T> a) {
  const T* const row = a.values + blockIdx.x * a.length;
  T sum = T(0);
  for (int64_t i = threadIdx.x; i < a.length; i += kThreads) sum += load(row + i);
  sum = sum_lanes(sum, {a.rows, 0, 1, 8, 0});
  if (threadIdx.x == 0) store(a.sums + blockIdx.x, sum);
}

template <class T>
void sum_rows(const void* values, void* sums, int64_t rows, int64_t length, void* stream) {
  const SumRows<T> arguments{static_cast<const T*>(values), static_cast<T*>(sums), rows, length};
  launch("sum_rows", sum_rows_kernel<T>, rows, arguments, stream);
}

}  // namespace flowkernels::cuda
