// How a grid walks over a box of rows: which threads share a row, and which part of it each of them takes. Offsets are
// 64-bit everywhere; indices inside a row, which have to be divided, are 32-bit.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "cuda/memory.cuh"
#include "flow/plan.h"

namespace flowkernels::cuda {

// A tensor over a box: the address of its first element and its strides in elements.
template <class S>
struct Tensor {
  S* data;
  int64_t stride[kDims];

  Tensor(S* base, const View& view) : data(base == nullptr ? nullptr : base + view.offset) {
    for (int d = 0; d < kDims; ++d) stride[d] = view.stride[d];
  }
};

// Division by a number known to the host only, as a multiplication (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t divisor, multiplier, shift;
  uint64_t long_multiplier;

  explicit Divisor(int64_t d) : divisor(static_cast<uint32_t>(d)), shift(31) {
    while ((int64_t{1} << (shift - 31)) < d) ++shift;
    multiplier = d == 0 ? 0 : static_cast<uint32_t>(((uint64_t{1} << shift) + d - 1) / d);
    long_multiplier = d < 2 ? 0 : ~uint64_t{0} / d + 1;
  }

  // Of n < 2^31.
  FK_INLINE uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> shift);
  }

  // Of n < 2^64 / divisor.
  FK_INLINE int64_t long_quotient(int64_t n) const { return divisor == 1 ? n : __umul64hi(n, long_multiplier); }
};

struct Position {
  uint32_t d1, d2, d3;
};

// The event dimensions of a box. Most are a single run: one dimension, no division.
struct Event {
  int64_t length;
  Divisor by_3, by_2;
  bool single_run;

  explicit Event(const Extent& e)
      : length(e.per_row()), by_3(e.size[3]), by_2(e.size[2]), single_run(e.size[1] == 1 && e.size[2] == 1) {
    const bool divisible = std::max({e.size[1], e.size[2], e.size[3]}) < int64_t{1} << 30 && length < int64_t{1} << 34;
    if (!single_run && !divisible) throw std::length_error("a row is too long to be walked with these strides");
  }

  // Of an element `steps` beyond another, which divides 32-bit numbers.
  FK_INLINE Position after(const Position& start, uint32_t steps) const {
    const uint32_t last = start.d3 + steps;
    if (single_run) return {0, 0, last};
    const uint32_t carry_3 = by_3.quotient(last), middle = start.d2 + carry_3, carry_2 = by_2.quotient(middle);
    return {start.d1 + carry_2, middle - carry_2 * by_2.divisor, last - carry_3 * by_3.divisor};
  }

  // Of any element, which divides 64-bit numbers: once per segment of a long row.
  FK_INLINE Position position(int64_t index) const {
    if (single_run || index == 0) return {0, 0, 0};
    const int64_t run = by_3.long_quotient(index), d1 = by_2.long_quotient(run);
    return {static_cast<uint32_t>(d1), static_cast<uint32_t>(run - d1 * by_2.divisor),
            static_cast<uint32_t>(index - run * by_3.divisor)};
  }
};

// The share of one thread: every `lanes`-th element, or group of elements, of a row or a piece of one.
struct Segment {
  const Event& event;
  int64_t row;
  int64_t number;  // among the segments of all rows
  int64_t base;    // of a single run: the first element; else 0, and `start` is its position
  Position start;
  uint32_t count;  // 0 beyond the last row
  uint32_t lane, lanes;
  bool first_lane;  // of a row that exists
};

// `lanes` threads walk each segment: 1 to 32, which are in one warp, or those of a whole block. Where neighbours in
// memory belong to different rows, `columns` rows are walked side by side, and the lanes of a row are that far apart.
struct Mapping {
  int64_t rows;
  uint32_t chunk, segments;  // elements of a segment, segments of a row
  uint32_t lane_bits, column_bits;

  int64_t blocks() const {
    const int64_t columns = int64_t{1} << column_bits, tiles = (rows + columns - 1) / columns * segments;
    const int64_t tiles_per_block = kThreads >> (lane_bits + column_bits);
    return (tiles + tiles_per_block - 1) / tiles_per_block;
  }

  FK_INLINE Segment segment(uint32_t block, const Event& event) const {
    const uint32_t thread = threadIdx.x, tile_bits = lane_bits + column_bits;
    int64_t tile = static_cast<int64_t>(block) * (kThreads >> tile_bits) + (thread >> tile_bits);
    uint32_t piece = 0;
    if (segments > 1) {  // then a tile is a block
      tile = block / segments;
      piece = block % segments;
    }
    const int64_t row = (tile << column_bits) + (thread & ((1u << column_bits) - 1));
    const int64_t begin = static_cast<int64_t>(piece) * chunk;
    const int64_t left = row < rows && begin < event.length ? event.length - begin : 0;
    const uint32_t count = left < chunk ? static_cast<uint32_t>(left) : chunk;
    const uint32_t lanes = 1u << lane_bits, lane = (thread >> column_bits) & (lanes - 1);
    return {event, row,   row * segments + piece, event.single_run ? begin : 0, event.position(begin), count,
            lane,  lanes, row < rows && lane == 0};
  }
};

}  // namespace flowkernels::cuda
