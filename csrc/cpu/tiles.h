// Cutting a box of elements into tiles that fit the first-level cache, and moving tiles between tensors of any
// strides and dtypes and the dense arrays that kernels compute on. Included by every kernel source, once per
// instruction set, inside that set's namespace: nothing here may be shared by the linker between the sets.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cpu/memory.h"
#include "flow/half.h"
#include "flow/plan.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int64_t kTile = 1024;
constexpr int64_t kDirectRow = 128;           // rows at least this long are tiles of their own, which need no copy
constexpr int64_t kThreadedElements = 32768;  // below this, waking threads costs more than it saves

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls f with a compile-time constant: g++ makes no vectors of a loop that asks for a bool at run time, unless it
// happens to move the question out of the loop.
template <class F>
FK_INLINE void with_bool(bool value, F&& f) {
  if (value) {
    f(std::true_type());
  } else {
    f(std::false_type());
  }
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t elements(const Extent& box) { return box.size[0] * box.size[1] * box.size[2] * box.size[3]; }

inline int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return 8;
    case Dtype::float32:
    case Dtype::int32:
      return 4;
    case Dtype::uint8:
      return 1;
    default:
      return 2;
  }
}

// Advice about an output that may be absent.
inline void expect_large(void* output, int64_t count, Dtype dtype) {
  if (output != nullptr) advise_huge_pages(output, count * size_of(dtype));
}

// One tile: where it starts in the box and how far it reaches.
struct Tile {
  int64_t start[kDims];
  int64_t size[kDims];

  int64_t elements() const { return size[0] * size[1] * size[2] * size[3]; }
};

// A tile is either some whole rows or a part of one row, so that every row is summed in an order that depends on the
// row's size alone.
struct Tiling {
  Extent box;
  int64_t block[kDims];
  int64_t blocks[kDims];

  explicit Tiling(const Extent& extent) : box(extent) {
    int64_t room = kTile;
    for (int d = kDims - 1; d >= 0; --d) {
      if (d == 0 && room > 1) room = kTile / room >= kDirectRow ? 1 : room;
      block[d] = room > 1 ? smaller(box.size[d], room) : 1;
      blocks[d] = block[d] > 0 ? ceil_divide(box.size[d], block[d]) : 0;
      room = block[d] == box.size[d] && block[d] > 0 ? room / block[d] : 1;
    }
  }

  int64_t count() const { return blocks[0] * blocks[1] * blocks[2] * blocks[3]; }

  int64_t per_row() const { return blocks[1] * blocks[2] * blocks[3]; }

  Tile tile(int64_t index) const {
    Tile tile;
    for (int d = kDims - 1; d >= 0; --d) {
      tile.start[d] = index % blocks[d] * block[d];
      tile.size[d] = smaller(block[d], box.size[d] - tile.start[d]);
      index /= blocks[d];
    }
    return tile;
  }
};

inline int64_t offset(const View& view, const Tile& tile) {
  int64_t sum = view.offset;
  for (int d = 0; d < kDims; ++d) sum += tile.start[d] * view.stride[d];
  return sum;
}

inline bool dense(const View& view, const Tile& tile) {
  int64_t expected = 1;
  for (int d = kDims - 1; d >= 0; --d) {
    if (tile.size[d] != 1 && view.stride[d] != expected) return false;
    expected *= tile.size[d];
  }
  return true;
}

// Asks for memory that will be read (or written); `locality` as __builtin_prefetch has it. Inline, because g++ drops
// calls of a function that only prefetches.
template <bool write, int locality, class T>
FK_INLINE void prefetch(const T* from, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += line) __builtin_prefetch(from + i, write, locality);
}

// How kernels walk a tile: as one run of elements, or as rows of whole vectors that tensors need not hold side by side.
struct Walk {
  int64_t rows;
  int64_t length;
  int outer;  // the dimension of the rows, where there are several

  explicit Walk(const Tile& tile) : rows(1), length(tile.elements()), outer(0) {
    constexpr int64_t kVector = 16;  // a row with a remainder costs more to walk than to copy
    int found = 0;
    for (int d = 0; d < kDims - 1; ++d) {
      if (tile.size[d] == 1) continue;
      ++found;
      outer = d;
    }
    if (found != 1 || tile.size[3] % kVector != 0) return;
    rows = tile.size[outer];
    length = tile.size[3];
  }
};

// The rows of a walk in memory.
template <class T>
struct Rows {
  T* data;
  int64_t step;

  T* operator[](int64_t row) const { return data + row * step; }
};

// The step between rows where a view can be walked in place, else 0.
inline int64_t step_in_place(const View& view, const Tile& tile, const Walk& walk) {
  if (walk.rows > 1) return view.stride[3] == 1 ? view.stride[walk.outer] : 0;
  return dense(view, tile) ? walk.length : 0;
}

template <class T>
inline T convert(T value, const T*) {
  return value;
}
inline float convert(Half value, const float*) { return up(value); }
inline float convert(BFloat16 value, const float*) { return up(value); }
inline Half convert(float value, const Half*) { return down_half(value); }
inline BFloat16 convert(float value, const BFloat16*) { return down_bfloat16(value); }
inline double convert(float value, const double*) { return static_cast<double>(value); }
inline float convert(double value, const float*) { return static_cast<float>(value); }
inline float convert(uint8_t value, const float*) { return static_cast<float>(value); }
inline double convert(uint8_t value, const double*) { return static_cast<double>(value); }
inline int32_t convert(float value, const int32_t*) { return static_cast<int32_t>(value); }
inline int32_t convert(double value, const int32_t*) { return static_cast<int32_t>(value); }
// In two steps, which are vector instructions.
inline uint8_t convert(float value, const uint8_t*) { return static_cast<uint8_t>(static_cast<int32_t>(value)); }
inline uint8_t convert(double value, const uint8_t*) { return static_cast<uint8_t>(static_cast<int32_t>(value)); }

// The loop that copies a tile between two tensors, with the longer of the two innermost dimensions inside.
struct CopyLoop {
  int64_t size[kDims] = {1, 1, 1, 1};
  int64_t from[kDims] = {0, 0, 0, 0};
  int64_t to[kDims] = {0, 0, 0, 0};

  CopyLoop(const Tile& tile, const int64_t* from_stride, const int64_t* to_stride) {
    int last = kDims;
    for (int d = kDims - 1; d >= 0; --d) {
      if (tile.size[d] == 1) continue;
      --last;
      size[last] = tile.size[d];
      from[last] = from_stride[d];
      to[last] = to_stride[d];
    }
    if (size[3] < 16 && size[2] > size[3]) {
      swap(size);
      swap(from);
      swap(to);
    }
  }

  static void swap(int64_t* values) {
    const int64_t kept = values[2];
    values[2] = values[3];
    values[3] = kept;
  }
};

template <class To, class From>
void copy(const CopyLoop& loop, const From* __restrict from, To* __restrict to) {
  for (int64_t i = 0; i < loop.size[0]; ++i) {
    for (int64_t j = 0; j < loop.size[1]; ++j) {
      for (int64_t k = 0; k < loop.size[2]; ++k) {
        const From* source = from + i * loop.from[0] + j * loop.from[1] + k * loop.from[2];
        To* target = to + i * loop.to[0] + j * loop.to[1] + k * loop.to[2];
        const int64_t count = loop.size[3], source_step = loop.from[3], target_step = loop.to[3];
        if (source_step == 1 && target_step == 1) {
          for (int64_t e = 0; e < count; ++e) target[e] = convert(source[e], target);
        } else if (source_step == 2 && target_step == 1) {  // pairs, such as zuko's; a constant makes these vectors
          for (int64_t e = 0; e < count; ++e) target[e] = convert(source[2 * e], target);
        } else {
          for (int64_t e = 0; e < count; ++e) target[e * target_step] = convert(source[e * source_step], target);
        }
      }
    }
  }
}

struct DenseStrides {
  int64_t stride[kDims];

  explicit DenseStrides(const Tile& tile) {
    int64_t next = 1;
    for (int d = kDims - 1; d >= 0; --d) {
      stride[d] = next;
      next *= tile.size[d];
    }
  }
};

template <class T, class From>
const T* gather(const View& view, const From* base, const Tile& tile, T* scratch) {
  copy(CopyLoop(tile, view.stride, DenseStrides(tile).stride), base + offset(view, tile), scratch);
  return scratch;
}

template <class T>
constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;

// A tile of a tensor as rows of T: the tensor's own memory where that will do, else a copy.
template <class T>
Rows<const T> load(const View& view, const void* base, Dtype dtype, const Tile& tile, const Walk& walk, T* scratch) {
  if (dtype == kDtype<T>) {
    const T* own = static_cast<const T*>(base);
    const int64_t step = step_in_place(view, tile, walk);
    if (step != 0) return {own + offset(view, tile), step};
    return {gather(view, own, tile, scratch), walk.length};
  }
  if (dtype == Dtype::float32) return {gather(view, static_cast<const float*>(base), tile, scratch), walk.length};
  if (dtype == Dtype::uint8) return {gather(view, static_cast<const uint8_t*>(base), tile, scratch), walk.length};
  if constexpr (sizeof(T) == 4) {
    if (dtype == Dtype::float16) return {gather(view, static_cast<const Half*>(base), tile, scratch), walk.length};
    if (dtype == Dtype::bfloat16) return {gather(view, static_cast<const BFloat16*>(base), tile, scratch), walk.length};
  }
  std::abort();  // float64 beside float32 accumulation, which the argument checks rule out
}

// Where a kernel writes a tile: the tensor's own memory where it can, else `scratch`, which `store` then moves.
template <class T>
Rows<T> target(const View& view, void* base, Dtype dtype, const Tile& tile, const Walk& walk, T* scratch) {
  const int64_t step = base == nullptr || dtype != kDtype<T> ? 0 : step_in_place(view, tile, walk);
  if (step == 0) return {scratch, walk.length};
  return {static_cast<T*>(base) + offset(view, tile), step};
}

template <class T>
void store(const View& view, void* base, Dtype dtype, const Tile& tile, const T* scratch) {
  const CopyLoop loop(tile, DenseStrides(tile).stride, view.stride);
  const int64_t start = offset(view, tile);
  if (dtype == Dtype::float32) return copy(loop, scratch, static_cast<float*>(base) + start);
  if (dtype == Dtype::uint8) return copy(loop, scratch, static_cast<uint8_t*>(base) + start);
  if (dtype == Dtype::int32) return copy(loop, scratch, static_cast<int32_t*>(base) + start);
  if constexpr (sizeof(T) == 8) {
    return copy(loop, scratch, static_cast<double*>(base) + start);
  } else {
    if (dtype == Dtype::float16) return copy(loop, scratch, static_cast<Half*>(base) + start);
    if (dtype == Dtype::bfloat16) return copy(loop, scratch, static_cast<BFloat16*>(base) + start);
  }
}

// Copies one tile of `from` to `to`, bit for bit.
inline void copy_tile(const View& from, const void* source, const View& to, void* destination, Dtype dtype,
                      const Tile& tile) {
  const CopyLoop loop(tile, from.stride, to.stride);
  const int64_t read = offset(from, tile), write = offset(to, tile);
  if (dtype == Dtype::float64) {
    copy(loop, static_cast<const uint64_t*>(source) + read, static_cast<uint64_t*>(destination) + write);
  } else if (dtype == Dtype::float32) {
    copy(loop, static_cast<const uint32_t*>(source) + read, static_cast<uint32_t*>(destination) + write);
  } else {
    copy(loop, static_cast<const uint16_t*>(source) + read, static_cast<uint16_t*>(destination) + write);
  }
}

template <class T>
void fill(T* array, T value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) array[i] = value;
}

// The gradient of the log-determinant for each element of a tile.
template <class T>
void spread(const T* grad_log_det, int64_t stride, const Tile& tile, T* out) {
  const int64_t per_row = tile.elements() / tile.size[0];
  for (int64_t r = 0; r < tile.size[0]; ++r) {
    fill(out + r * per_row, grad_log_det[(tile.start[0] + r) * stride], per_row);
  }
}

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
