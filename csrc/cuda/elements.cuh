// The elements that a thread takes at a time, and where they lie in each tensor.
#pragma once

#include "cuda/box.cuh"
#include "cuda/ptx.cuh"

namespace flowkernels::cuda {

template <class S>
FK_INLINE S* locate(const Tensor<S>& t, const Segment& s, int64_t row, const Position& at, int64_t last_stride) {
  S* const first = t.data + (row * t.stride[0] + s.base * last_stride);
  if (s.event.single_run) return first + at.d3 * last_stride;
  return first + (at.d1 * t.stride[1] + at.d2 * t.stride[2] + at.d3 * last_stride);
}

// n neighbouring elements: what a thread takes at a time where tensors can be read by 16 bytes.
template <int n>
struct Neighbours {
  static constexpr int width = n;
  const Segment& segment;
  int64_t row;  // opaque: a pointer into each tensor would take half of the registers
  Position at;

  static FK_INLINE uint32_t first(const Segment& s) { return s.lane * n; }

  FK_INLINE Neighbours(const Segment& s, uint32_t index)
      : segment(s), row(opaque(s.row)), at(s.event.after(s.start, index)) {}

  FK_INLINE bool has(int) const { return true; }

  template <class S>
  FK_INLINE Pack<S, n> load(const Tensor<const S>& t) const {
    return load_pack<S, n>(locate(t, segment, row, at, 1));
  }

  template <class S>
  FK_INLINE void store(const Tensor<S>& t, const Pack<S, n>& values) const {
    store_pack(locate(t, segment, row, at, 1), values);
  }

  // Of a mask, a byte for each element; it may be the same along a run.
  FK_INLINE uint64_t load_mask(const Tensor<const uint8_t>& t) const {
    const uint8_t* const from = locate(t, segment, row, at, t.stride[3]);
    return t.stride[3] == 0 ? cuda::load(from) * 0x0101010101010101u : load_pack<uint8_t, n>(from).word[0];
  }

  // The `pair`-th two of a tensor with any strides, small enough to stay in the cache.
  template <class S>
  FK_INLINE Pair<S> load_pair(const Tensor<const S>& t, int pair) const {
    const S* const from = locate(t, segment, row, at, t.stride[3]) + 2 * pair * t.stride[3];
    return {{cuda::load(from), cuda::load(from + t.stride[3])}};
  }
};

// Two elements `lanes` apart, anywhere in memory: the threads of a row stay side by side, and each still has two
// loads of every tensor in flight.
struct Scattered {
  static constexpr int width = 2;
  const Segment& segment;
  int64_t row;
  bool has_second;
  Position at[2];

  static FK_INLINE uint32_t first(const Segment& s) { return s.lane; }

  FK_INLINE Scattered(const Segment& s, uint32_t index)
      : segment(s),
        row(opaque(s.row)),
        has_second(index + s.lanes < s.count),
        at{s.event.after(s.start, index), s.event.after(s.start, index + s.lanes)} {}

  FK_INLINE bool has(int j) const { return j == 0 || has_second; }

  template <class S>
  FK_INLINE Pack<S, 2> load(const Tensor<const S>& t) const {
    Pack<S, 2> values{};
    values.put(load_pair(t, 0));
    return values;
  }

  template <class S>
  FK_INLINE void store(const Tensor<S>& t, Pack<S, 2> values) const {
    const Pair<S> pair = values.take();
    cuda::store(locate(t, segment, row, at[0], t.stride[3]), pair.value[0]);
    if (has_second) cuda::store(locate(t, segment, row, at[1], t.stride[3]), pair.value[1]);
  }

  FK_INLINE uint64_t load_mask(const Tensor<const uint8_t>& t) const { return load(t).word[0]; }

  template <class S>
  FK_INLINE Pair<S> load_pair(const Tensor<const S>& t, int) const {
    return {{cuda::load(locate(t, segment, row, at[0], t.stride[3])),
             has_second ? cuda::load(locate(t, segment, row, at[1], t.stride[3])) : S{}}};
  }
};

}  // namespace flowkernels::cuda
