// The kernels of planar and radial flows. An op's class, Planar or Radial, knows one layer of one row; here rows walk
// through their layers, and sums over rows are taken.
#pragma once

#include "cuda/lanes.cuh"
#include "flow/stack.h"

namespace flowkernels::cuda::stack {

constexpr int kTableDepth = 256;  // layers of which a block keeps the numbers in shared memory
constexpr int kSegment = 16;      // layers whose inputs a backward pass keeps
constexpr int kMostOfWarp = 8;    // features per lane of rows that a warp or a part of one walks through

// How many blocks have to fit a multiprocessor, which bounds the registers: 64, 128 and 255 of them. Fewer would spill.
template <class T, int n>
constexpr int kForwardBlocks = sizeof(T) == 8 ? (n < 16 ? 2 : 1) : (n < 16 ? 4 : 2);
template <class T, int n>
constexpr int kBackwardBlocks = n * sizeof(T) <= 32 ? 2 : 1;

// What every kernel is told about a call.
template <class T>
struct Stack {
  int64_t rows;
  uint32_t features, lane_bits;
  int32_t depth;
  bool per_example, inverse;
  bool wide;  // the vectors among the parameters can be read by neighbours
  const T* parameters[kStackParameters];
  int64_t strides[kStackParameters];
  const T* table;  // numbers of each layer that another kernel computed, or null

  // Blocks of threads that walk through all rows, or layers, at once.
  int64_t tiles(int64_t count) const {
    const int64_t together = kThreads >> lane_bits;
    return (count + together - 1) / together;
  }
};

// What is known to the threads of one row.
template <class T, int n>
class Row {
 public:
  const Stack<T>& stack;
  const Lane<T, n> lane;
  int64_t row;
  bool exists;

  explicit FK_INLINE Row(const Stack<T>& s) : stack(s), lane(s.features, s.lane_bits), row(0), exists(true) {}

  // Rows beyond the last read its parameters.
  FK_INLINE void take(int64_t tile) {
    row = tile * rows() + group();
    exists = row < stack.rows;
  }

  FK_INLINE int rows() const { return kThreads >> stack.lane_bits; }  // of a block
  FK_INLINE uint32_t group() const { return threadIdx.x >> stack.lane_bits; }
  FK_INLINE bool is_first_lane() const { return (threadIdx.x & ((1u << stack.lane_bits) - 1)) == 0; }

  FK_INLINE void vector(T (&v)[n], int which, int k) const {
    lane.again().load(v, address(which) + static_cast<int64_t>(k) * stack.features, 1, stack.wide);
  }
  FK_INLINE T number(int which, int k) const { return load(address(which) + k); }

  template <int count>
  FK_INLINE void sum(T (&sums)[count]) {
    sum_row(sums, stack.lane_bits, turn_);
  }
  FK_INLINE T sum(T value) {
    T sums[1] = {value};
    sum(sums);
    return sums[0];
  }

 private:
  FK_INLINE const T* address(int which) const {
    return stack.parameters[which] + (exists ? row : stack.rows - 1) * stack.strides[which];
  }

  uint32_t turn_ = 0;
};

// The logarithm of a product.
template <class T>
class LogSum {
 public:
  FK_INLINE void multiply(T factor) {
    if (LogProduct<T>::takes(factor))
      product_ *= factor;
    else
      sum_ += math::log(factor);
  }
  // To be called for every so many factors.
  FK_INLINE void settle() {
    sum_ += math::log(product_);
    product_ = T(1);
  }
  FK_INLINE T value() const { return sum_; }

 private:
  T sum_ = 0, product_ = 1;
};

// Where it is too much for every block to find the numbers of all layers.
template <class Op>
struct TableArguments {
  Stack<typename Op::Number> stack;
  typename Op::Constants constants;
  typename Op::Number* table;
};

template <class Op>
__global__ void __launch_bounds__(kThreads) table_kernel(const __grid_constant__ TableArguments<Op> a) {
  Op op(a.stack, a.constants);
  op.fill(a.table, blockIdx.x * op.rows());
}

template <class Op>
struct ForwardArguments {
  Stack<typename Op::Number> stack;
  typename Op::Constants constants;
  Matrix<const void> x;
  Matrix<void> y;
  typename Op::Number* log_det;
};

template <class Op>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<typename Op::Number, Op::kPerLane>)
    forward_kernel(const __grid_constant__ ForwardArguments<Op> a) {
  using T = typename Op::Number;
  Op op(a.stack, a.constants);
  op.prepare();
  op.take(blockIdx.x);
  T z[Op::kPerLane] = {};
  if (op.exists) op.lane.load(z, a.x, op.row);
#pragma unroll 1
  for (int i = 0; i < a.stack.depth; ++i) {
    if (a.stack.inverse)
      op.retreat(a.stack.depth - 1 - i, z);
    else
      op.advance(i, z);
    if (i % LogProduct<T>::kFactors == LogProduct<T>::kFactors - 1) op.settle();
  }
  op.settle();
  if (!op.exists) return;
  op.lane.store(z, a.y, op.row);
  if (op.is_first_lane()) store(a.log_det + op.row, a.stack.inverse ? -op.log_det() : op.log_det());
}

template <class Op>
struct BackwardArguments {
  using T = typename Op::Number;
  Stack<T> stack;
  typename Op::Constants constants;
  Matrix<const void> grad_y, saved;
  Matrix<void> grad_x;
  const T* grad_log_det;
  int64_t grad_log_det_stride;
  bool of_parameters;
  T* grads[kStackParameters];  // where every row has its own parameters
  T* partials;                 // where it has not: each block's sums
  T* records;                  // each block's
  int64_t partial_length;      // of a layer: vectors, then numbers, then what aligns the next
  int64_t record_length;       // of a block
  int64_t tiles, blocks;
};

// Where the gradients of a layer's parameters go: to the row's own, or into a sum over all rows.
template <class Op>
class Sink {
 public:
  using T = typename Op::Number;
  static constexpr int n = Op::kPerLane;
  using Vectors = T[Op::kVectors * n];  // one after another
  using Numbers = T[Op::kNumbers];

  FK_INLINE Sink(const BackwardArguments<Op>& a, bool first)
      : a_(a), first_(first), features_(a.stack.features), lane_bits_(a.stack.lane_bits) {}

  FK_INLINE bool wanted() const { return a_.of_parameters; }

  FK_INLINE void put(const Op& op, int k, Vectors& vectors, Numbers& numbers) {
    T* const partial = a_.partials + (blockIdx.x * static_cast<int64_t>(a_.stack.depth) + k) * a_.partial_length;
    if (a_.stack.per_example)
      put_own(op, op.row * a_.stack.depth + k, vectors, numbers);
    else if (lane_bits_ > 5)
      add_row(op, partial, vectors, numbers);
    else
      add_rows(op, partial, vectors, numbers);
  }

 private:
  FK_INLINE void put_own(const Op& op, int64_t layer, const Vectors& vectors, const Numbers& numbers) {
    if (!op.exists) return;
#pragma unroll
    for (int i = 0; i < Op::kVectors; ++i)
      op.lane.again().store(vectors + i * n, a_.grads[i] + layer * features_, a_.stack.wide);
    if (!op.is_first_lane()) return;
#pragma unroll
    for (int i = Op::kVectors; i < kStackParameters; ++i) store(a_.grads[i] + layer, numbers[i - Op::kVectors]);
  }

  // A block has one row at a time, and each thread features of its own.
  FK_INLINE void add_row(const Op& op, T* partial, Vectors& vectors, const Numbers& numbers) {
    const bool wide = features_ % Lane<T, n>::kWidth == 0;
#pragma unroll
    for (int i = 0; i < Op::kVectors; ++i, partial += features_) {
      if (!first_) {
        T before[n];
        op.lane.load(before, partial, 1, wide);
#pragma unroll
        for (int j = 0; j < n; ++j) vectors[i * n + j] += before[j];
      }
      op.lane.store(vectors + i * n, partial, wide);
    }
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int i = 0; i < Op::kNumbers; ++i) add(partial + i, numbers[i]);
  }

  // Rows are summed in each warp, then over the warps.
  FK_INLINE void add_rows(const Op& op, T* partial, Vectors& vectors, Numbers& numbers) {
    if constexpr (n <= kMostOfWarp) {
      constexpr uint32_t warps = kThreads / 32, space = Op::kVectors * (n < kMostOfWarp ? n : 32 * n) + Op::kNumbers;
      FK_SHARED(T, staged, warps * space);
      T* const mine = staged + threadIdx.x / 32 * space;
      const uint32_t lanes = 1u << lane_bits_;
      sum_rows_of_warp(vectors, lanes, [&](int i, T sum) {
        const int j = i % n;
        if (op.lane.has(j)) mine[i / n * features_ + op.lane.feature(j)] = sum;
      });
      sum_rows_of_warp(numbers, lanes, [&](int i, T sum) {
        if (op.is_first_lane()) mine[Op::kVectors * features_ + i] = sum;
      });
      __syncthreads();
      for (uint32_t i = threadIdx.x; i < Op::kVectors * features_ + Op::kNumbers; i += kThreads) {
        T sum = staged[i];
        for (uint32_t w = 1; w < warps; ++w) sum += staged[w * space + i];
        add(partial + i, sum);
      }
      __syncthreads();
    }
  }

  FK_INLINE void add(T* to, T value) const { store(to, first_ ? value : load(to) + value); }

  const BackwardArguments<Op>& a_;
  const bool first_;  // of the block's tiles
  const uint32_t features_, lane_bits_;
};

// What a backward pass of a forward stack keeps in the workspace: the inputs of the layers of one segment, with what
// the op found there, and the inputs of the segments. Each thread reads only what it wrote.
template <class Op>
class Records {
 public:
  using T = typename Op::Number;
  using Point = typename Op::Point;
  static constexpr int n = Op::kPerLane, kSlot = (n + Op::kRecord) * kThreads;

  // Of a block.
  static int64_t length(int64_t depth) {
    return depth <= kSegment ? depth * kSlot : kSegment * kSlot + (depth - 1) / kSegment * n * kThreads;
  }

  explicit FK_INLINE Records(const BackwardArguments<Op>& a)
      : slots_(a.records + blockIdx.x * a.record_length), with_input_(Op::kNeedsInput || a.of_parameters) {}

  FK_INLINE void put(int layer, const T (&z)[n], const Point& point) {
    T* const slot = slots_ + layer % kSegment * kSlot;
    if (with_input_) put_vector(slot, z);
    T numbers[Op::kRecord];
    Op::pack(point, numbers);
#pragma unroll
    for (int i = 0; i < Op::kRecord; ++i) store(slot + (n + i) * kThreads + threadIdx.x, numbers[i]);
  }

  FK_INLINE Point get(const Op& op, int layer, T (&z)[n]) const {
    const T* const slot = slots_ + layer % kSegment * kSlot;
    if (with_input_) get_vector(slot, z);
    T numbers[Op::kRecord];
#pragma unroll
    for (int i = 0; i < Op::kRecord; ++i) numbers[i] = load(slot + (n + i) * kThreads + threadIdx.x);
    return op.unpack(numbers);
  }

  FK_INLINE void put_input_of(int segment, const T (&z)[n]) { put_vector(input_of(segment), z); }
  FK_INLINE void get_input_of(int segment, T (&z)[n]) const { get_vector(input_of(segment), z); }

 private:
  static constexpr int kWidth = kNeighbours<T, n>;

  FK_INLINE T* input_of(int segment) const { return slots_ + kSegment * kSlot + segment * n * kThreads; }

  FK_INLINE static void put_vector(T* to, const T (&z)[n]) {
#pragma unroll
    for (int j = 0; j < n; j += kWidth) write_neighbours<kWidth>(to + j * kThreads + threadIdx.x * kWidth, z + j);
  }
  FK_INLINE static void get_vector(const T* from, T (&z)[n]) {
#pragma unroll
    for (int j = 0; j < n; j += kWidth) read_neighbours<kWidth>(z + j, from + j * kThreads + threadIdx.x * kWidth);
  }

  T* const slots_;
  const bool with_input_;
};

// The layers from `begin` to before `end`, again: either all that comes before the last segment, or a segment.
template <class Op, class T, int n>
FK_INLINE void walk_again(Op& op, Records<Op>& records, int begin, int end, bool is_segment, T (&z)[n]) {
#pragma unroll 1
  for (int k = begin; k < end; ++k) {
    T input[n];
#pragma unroll
    for (int j = 0; j < n; ++j) input[j] = z[j];
    const auto point = op.advance(k, z);
    if (is_segment)
      records.put(k, input, point);
    else if (k % kSegment == 0)
      records.put_input_of(k / kSegment, input);
  }
}

// The gradient of an inverse stack goes the way that forward goes from its output. That of a forward stack goes through
// its segments from the last to the first, whose layers are computed again, because walking back to their inputs would
// lose what large layers have rounded away.
template <class Op, class T, int n>
FK_INLINE void walk(Op& op, Sink<Op>& sink, const BackwardArguments<Op>& a, T (&z)[n], T (&g)[n], T grad_log_det) {
  Records<Op> records(a);
  const bool inverse = a.stack.inverse;
  const int depth = a.stack.depth, span = inverse ? depth : kSegment, last = inverse ? 0 : (depth - 1) / kSegment;
#pragma unroll 1
  for (int segment = last + 1; segment >= 0; --segment) {
    const bool is_segment = segment <= last;
    const int begin = is_segment ? segment * span : 0;
    const int end = !is_segment ? last * span : depth < begin + span ? depth : begin + span;
    if (segment < last) records.get_input_of(segment, z);
    if (!inverse) walk_again(op, records, begin, end, is_segment, z);
    if (!is_segment) continue;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const int k = inverse ? i : begin + end - 1 - i;
      const auto layer = op.layer(k);
      const auto point = inverse ? op.find(layer, z) : records.get(op, k, z);
      op.backward(k, layer, point, z, g, grad_log_det, sink);
    }
  }
}

template <class Op>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<typename Op::Number, Op::kPerLane>)
    backward_kernel(const __grid_constant__ BackwardArguments<Op> a) {
  using T = typename Op::Number;
  Op op(a.stack, a.constants);
  op.prepare();
#pragma unroll 1
  for (int64_t tile = blockIdx.x; tile < a.tiles; tile += a.blocks) {
    op.take(tile);
    T z[Op::kPerLane] = {}, g[Op::kPerLane] = {}, grad_log_det = T(0);
    if (op.exists) {
      op.lane.load(z, a.saved, op.row);
      if (a.grad_y.data) op.lane.load(g, a.grad_y, op.row);
      if (a.grad_log_det) grad_log_det = load(a.grad_log_det + op.row * a.grad_log_det_stride);
    }
    Sink<Op> sink(a, tile == blockIdx.x);
    walk(op, sink, a, z, g, grad_log_det);
    if (op.exists && a.grad_x.data) op.lane.store(g, a.grad_x, op.row);
  }
}

// What the sums of all blocks become, layer by layer: a block for each.
template <class T>
struct FinishArguments {
  const T* partials;
  int64_t count, partial_length;
  int32_t depth;
  uint32_t features;
  const T* parameters[kStackParameters];
  T* grads[kStackParameters];
};

// Calls put(i, sum) with the sums over all partials of the first `length` elements, of this block's layer.
template <class T, class F>
FK_INLINE void sum_partials(const FinishArguments<T>& a, uint32_t length, F&& put) {
  FK_SHARED(T, staged, kThreads);
  uint32_t columns = kThreads;
  while (columns / 2 >= length && columns > 1) columns /= 2;
  const uint32_t column = threadIdx.x & (columns - 1), slice = threadIdx.x / columns, slices = kThreads / columns;
  const T* const layer = a.partials + blockIdx.x * a.partial_length;
  for (uint32_t base = 0; base < length; base += columns) {
    const uint32_t i = base + column;
    T sum = T(0);
    if (i < length)
      for (int64_t p = slice; p < a.count; p += slices) sum += load(layer + p * a.depth * a.partial_length + i);
    staged[threadIdx.x] = sum;
    __syncthreads();
    if (slice == 0 && i < length) {
      for (uint32_t s = 1; s < slices; ++s) sum += staged[s * columns + column];
      put(i, sum);
    }
    __syncthreads();
  }
}

template <class Finish>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ FinishArguments<typename Finish::Number> a) {
  Finish::run(a);
}

}  // namespace flowkernels::cuda::stack
