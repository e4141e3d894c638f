// What launchers decide on the host, for every op: types, the width of accesses, and which threads share a row.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "cuda/elements.cuh"

namespace flowkernels::cuda {

template <class S>
struct Type {
  using type = S;
};

// Calls f with the type of x.
template <class F>
void with_type(Dtype x, F&& f) {
  switch (x) {
    case Dtype::float32:
      return f(Type<float>{});
    case Dtype::float16:
      return f(Type<Half>{});
    case Dtype::bfloat16:
      return f(Type<BFloat16>{});
    case Dtype::float64:
      return f(Type<double>{});
    default:
      throw std::invalid_argument("x is of no floating type");
  }
}

// Calls f with the types of x and raw.
template <class F>
void with_types(Dtype x, Dtype raw, F&& f) {
  with_type(x, [&](auto x_type) {
    constexpr bool is_double = std::is_same_v<decltype(x_type), Type<double>>;
    if (raw == Dtype::float32) return f(x_type, Type<float>{});
    if constexpr (is_double) {
      if (raw == Dtype::float64) return f(x_type, x_type);
    } else {
      if (raw == Dtype::float16) return f(x_type, Type<Half>{});
      if (raw == Dtype::bfloat16) return f(x_type, Type<BFloat16>{});
    }
    throw std::invalid_argument(is_double ? "x in float64 takes raw in float64 or float32"
                                          : "raw in float64 goes with x in float64 only");
  });
}

// 16 bytes of the larger type: more would cost registers.
template <class X, class R>
constexpr int kNeighbours = 16 / std::max(sizeof(X), sizeof(R));

// Whether n neighbours of a box can be accessed together. A single row is asked for its stride as well, because the
// order in which it is summed must not depend on the number of rows.
template <class S>
bool fits(const Tensor<S>& t, const Extent& box, int n) {
  if (t.data == nullptr) return true;
  const int64_t bytes = access_bytes(n * sizeof(S));
  bool aligned = reinterpret_cast<uintptr_t>(t.data) % bytes == 0 && t.stride[3] == 1;
  for (int d = 0; d < kDims - 1; ++d)
    aligned = aligned && ((d > 0 && box.size[d] <= 1) || t.stride[d] * int64_t{sizeof(S)} % bytes == 0);
  return aligned;
}

// The same of a tensor that may be constant along a run.
template <class S>
bool fits_or_constant(const Tensor<S>& t, const Extent& box, int n) {
  return t.stride[3] == 0 || fits(t, box, n);
}

constexpr int64_t kLongestRow = 16384;  // that one block walks
constexpr int64_t kChunk = 8192;        // of a longer row

inline uint32_t bits_for(int64_t count) {
  uint32_t bits = 0;
  while ((int64_t{1} << bits) < count) ++bits;
  return bits;
}

// Chunks are constants, so that a sum does not depend on the number of rows.
inline Mapping map_rows(int64_t rows, int64_t length, int width, int64_t longest = kLongestRow,
                        int64_t chunk = kChunk) {
  const int64_t groups = (length + width - 1) / width;
  if (groups <= 128) return {rows, static_cast<uint32_t>(length), 1, bits_for(std::min<int64_t>(groups, 32)), 0};
  if (length <= longest) return {rows, static_cast<uint32_t>(length), 1, bits_for(kThreads), 0};
  return {rows, static_cast<uint32_t>(chunk), static_cast<uint32_t>((length + chunk - 1) / chunk), bits_for(kThreads),
          0};
}

}  // namespace flowkernels::cuda
