// The kernels of rational-quadratic splines. The raw numbers of the elements that a block takes at a time lie one after
// another in memory, or one number of many elements does; either way a warp reads whole sectors into shared memory,
// where each thread then finds those of its element, and puts their gradients.
#pragma once

#include "cuda/dispatch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/spline_element.cuh"

namespace flowkernels::cuda::spline {

constexpr int kTile = 128;  // threads of a block, and elements that it takes at a time
constexpr int kBatch = 6;   // loads of 16 bytes that a thread has under way: all of 8 bins in float32

// How many blocks have to fit a multiprocessor, which bounds the registers. Fewer of these would spill.
template <class T>
constexpr int kForwardBlocks = sizeof(T) == 8 ? 3 : 8;
template <class T, int bins>
constexpr int kBackwardBlocks = bins == 0 ? 5 : 6;
template <class T>
constexpr int kBackwardBlocks<T, 16> = 4;
template <int bins>
constexpr int kBackwardBlocks<double, bins> = 3;

FK_INLINE uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Calls f with a storage type that is computed with in T.
template <class T, class F>
FK_INLINE void with_storage(Dtype dtype, F&& f) {
  if constexpr (sizeof(T) == 8) {
    if (dtype == Dtype::float64) return f(Type<double>{});
  } else {
    if (dtype == Dtype::float16) return f(Type<Half>{});
    if (dtype == Dtype::bfloat16) return f(Type<BFloat16>{});
  }
  f(Type<float>{});
}

template <class T>
FK_INLINE T load_as(Dtype dtype, const char* from) {
  T value = T(0);
  with_storage<T>(dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    value = widen<T>(load(reinterpret_cast<const S*>(from)));
  });
  return value;
}

template <class T>
FK_INLINE void store_as(Dtype dtype, char* to, T value) {
  with_storage<T>(dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    store(reinterpret_cast<S*>(to), narrow<S>(value));
  });
}

// How blocks divide the rows: a block takes several short rows, a thread for each element; or a longer one, kTile
// elements at a time; or a chunk of one that is longer still.
struct Tiling {
  int64_t rows;
  uint32_t rows_of_block, columns, chunk, segments;
  Divisor by_columns;
  uint32_t tree;  // half of the threads of a row, rounded up to a power of two

  int64_t blocks() const { return (rows + rows_of_block - 1) / rows_of_block * segments; }
};

// What a block has of the active elements, or of the others, of its rows.
struct Share {
  int64_t first_row, begin;
  uint32_t rows, piece, count;  // elements of a row

  FK_INLINE Share(const Tiling& t, const Event& event) {
    uint32_t group = blockIdx.x;
    piece = 0;
    if (t.segments > 1) {
      group = blockIdx.x / t.segments;
      piece = blockIdx.x % t.segments;
    }
    first_row = static_cast<int64_t>(group) * t.rows_of_block;
    const int64_t rows_left = t.rows - first_row;
    rows = rows_left < t.rows_of_block ? static_cast<uint32_t>(rows_left) : t.rows_of_block;
    begin = static_cast<int64_t>(piece) * t.chunk;
    const int64_t left = begin < event.length ? event.length - begin : 0;
    count = left < t.chunk ? static_cast<uint32_t>(left) : t.chunk;
  }

  FK_INLINE Segment row(const Event& event, uint32_t number) const {
    return {event, first_row + number, 0, event.single_run ? begin : 0, event.position(begin), count, 0, 1, false};
  }
};

// The elements beside the active ones, by 16 bytes or one by one; zeros where `from` is null.
struct Copy {
  Event event;
  Tensor<const char> from;
  Tensor<char> to;
  uint32_t element_bytes, together;  // elements that are copied at a time
  Divisor by_groups;                 // of those in the share of a row
};

template <class W>
FK_INLINE void copy_elements(const Copy& c, const Share& share) {
  const uint32_t groups = share.count / c.together;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < groups * share.rows; i += kTile) {
    const uint32_t number = groups == c.by_groups.divisor ? c.by_groups.quotient(i) : 0;
    const Segment s = share.row(c.event, number);
    const Position at = c.event.after(s.start, (i - number * groups) * c.together);
    W word{};
    if (c.from.data) word = read<W>(locate(c.from, s, s.row, at, c.from.stride[3]));
    write(locate(c.to, s, s.row, at, c.to.stride[3]), word);
  }
}

FK_INLINE void copy_passive(const Copy& c, const Tiling& tiling) {
  if (c.to.data == nullptr) return;
  const Share share(tiling, c.event);
  if (c.together > 1)
    copy_elements<Word<16>>(c, share);
  else if (c.element_bytes == 8)
    copy_elements<Word<8>>(c, share);
  else if (c.element_bytes == 4)
    copy_elements<Word<4>>(c, share);
  else
    copy_elements<Word<2>>(c, share);
}

// Raw numbers of all elements, or their gradients; strides and the step from one to the next in bytes.
template <class Byte>
struct Parameters {
  Tensor<Byte> first;  // of each element
  int64_t step;
  Dtype dtype;
  bool adjacent;  // those of a tile lie one after another
};

template <class T>
struct ForwardArguments {
  Spline<T> spline;
  Tiling tiling;
  Event event;
  Divisor by_parameters;
  Dtype x_dtype;
  Tensor<const char> x;
  Parameters<const char> raw;
  Tensor<const uint8_t> mask;
  Tensor<char> y;
  T* sums;  // one per segment: log_det, or the workspace
  Copy passive;
};

template <class T>
struct BackwardArguments {
  Spline<T> spline;
  Tiling tiling;
  Event event;
  Divisor by_parameters;
  Dtype x_dtype;
  Tensor<const char> grad_y, saved;
  const T* grad_log_det;
  int64_t grad_log_det_stride;
  Parameters<const char> raw;
  Tensor<const uint8_t> mask;
  Tensor<char> grad_x;
  Parameters<char> grad_raw;
  Copy passive;
};

// The elements that a block takes at a time, and the one of this thread.
struct Turn {
  const Segment& segment;
  int64_t row;  // opaque: pointers into all tensors would take too many registers
  Position at;
  bool exists;
  uint32_t elements;
  int64_t first_row, first;  // the first of all

  FK_INLINE Turn(const Segment& s, const Share& share, const Tiling& t, uint32_t first_of_share)
      : segment(s),
        row(opaque(s.row)),
        at(s.event.after(s.start, first_of_share + s.lane)),
        exists(first_of_share + s.lane < s.count),
        elements(t.rows_of_block > 1 ? share.rows * t.columns : smaller(kTile, share.count - first_of_share)),
        first_row(share.first_row),
        first(share.begin + first_of_share) {}

  template <class S>
  FK_INLINE S* locate(const Tensor<S>& t) const {
    return cuda::locate(t, segment, row, at, t.stride[3]);
  }

  // The first number of the first element; others follow.
  template <class Byte>
  FK_INLINE Byte* run(const Parameters<Byte>& p, uint32_t parameters) const {
    return p.first.data + (first_row * p.first.stride[0] + first * (parameters * p.step));
  }
};

// Those of one thread in global memory: for more bins than shared memory has room for.
template <class T>
struct Direct {
  const char* from;
  char* to;
  int64_t step, step_to;
  Dtype dtype;

  FK_INLINE T get(uint32_t i) const { return load_as<T>(dtype, from + i * step); }
  FK_INLINE void put(uint32_t i, T gradient) const { store_as(dtype, to + i * step_to, gradient); }
};

// Those of one thread in shared memory, where gradients take the places of numbers.
template <class T>
struct Staged {
  T* numbers;

  FK_INLINE T get(uint32_t i) const { return numbers[i]; }
  FK_INLINE void put(uint32_t i, T gradient) const { numbers[i] = gradient; }
};

// The numbers of all elements of a turn in shared memory. From one element to the next is an odd number of places, so
// that the threads of a warp find theirs in different banks: one more than there are numbers if those are even.
template <class T>
class Tile {
 public:
  FK_INLINE Tile(T* memory, const Divisor& parameters) : places_(memory), by_parameters_(parameters) {}

  FK_INLINE Staged<T> own() const { return {places_ + shift_ + threadIdx.x * (parameters() | 1)}; }

  template <class Byte>
  FK_INLINE void fill(const Parameters<Byte>& from, const Turn& turn) {
    with_storage<T>(from.dtype, [&](auto type) {
      using S = typename decltype(type)::type;
      if (from.adjacent) return fill_run(reinterpret_cast<const S*>(turn.run(from, parameters())), turn.elements);
      if (!turn.exists) return;
      const char* const first = turn.locate(from.first);
      const Staged<T> to = own();
#pragma unroll 8
      for (uint32_t i = 0; i < parameters(); ++i)
        to.put(i, widen<T>(load(reinterpret_cast<const S*>(first + i * from.step))));
    });
  }

  template <class Byte>
  FK_INLINE void empty(const Parameters<Byte>& to, const Turn& turn) const {
    with_storage<T>(to.dtype, [&](auto type) {
      using S = typename decltype(type)::type;
      if (to.adjacent) return empty_run(reinterpret_cast<S*>(turn.run(to, parameters())), turn.elements);
      if (!turn.exists) return;
      char* const first = turn.locate(to.first);
      const Staged<T> from = own();
#pragma unroll 8
      for (uint32_t i = 0; i < parameters(); ++i)
        store(reinterpret_cast<S*>(first + i * to.step), narrow<S>(from.get(i)));
    });
  }

 private:
  // A run in global memory: numbers before the first multiple of 16 bytes, words of as many, and numbers after them.
  template <class S>
  struct Run {
    static constexpr uint32_t n = 16 / sizeof(S);
    uint32_t shift, before, words, rest;

    FK_INLINE Run(const S* address, uint32_t count)
        : shift(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address) % 16 / sizeof(S))) {
      before = smaller((n - shift) % n, count);
      words = (count - before) / n;
      rest = count - words * n;
    }
    FK_INLINE uint32_t word(uint32_t i) const { return before + i * n; }
    FK_INLINE uint32_t single(uint32_t i) const { return i < before ? i : i + words * n; }
  };

  FK_INLINE uint32_t parameters() const { return by_parameters_.divisor; }
  FK_INLINE bool padded() const { return parameters() % 2 == 0; }

  // The place of the j-th number of a run.
  FK_INLINE T* place(uint32_t j) const { return places_ + shift_ + j + (padded() ? by_parameters_.quotient(j) : 0); }

  template <class S>
  FK_INLINE void fill_run(const S* from, uint32_t elements) {
    const Run<S> run(from, elements * parameters());
    shift_ = run.shift;  // words of 16 bytes stay such in shared memory
    const uint32_t single = run.single(threadIdx.x);
    if (threadIdx.x < run.rest) *place(single) = widen<T>(load(from + single));
    if (padded()) {
#pragma unroll 1
      for (uint32_t i = threadIdx.x; i < run.words; i += kTile)
        put_word<S, false>(run.word(i), read<Word<16>>(from + run.word(i)));
      return;
    }
#pragma unroll 1
    for (uint32_t first = threadIdx.x; first < run.words; first += kBatch * kTile) {
      Word<16> words[kBatch]{};  // all are under way before the first arrives; without a value they would stay alive
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        if (first + i * kTile < run.words) words[i] = read<Word<16>>(from + run.word(first + i * kTile));
#pragma unroll
      for (uint32_t i = 0; i < kBatch; ++i)
        if (first + i * kTile < run.words) put_word<S, true>(run.word(first + i * kTile), words[i]);
    }
  }

  template <class S>
  FK_INLINE void empty_run(S* to, uint32_t elements) const {
    const Run<S> run(to, elements * parameters());
    const uint32_t single = run.single(threadIdx.x);
    if (threadIdx.x < run.rest) store(to + single, narrow<S>(*place(single)));
    if (padded() || run.shift != shift_) {
#pragma unroll 1
      for (uint32_t i = threadIdx.x; i < run.words; i += kTile)
        write(to + run.word(i), get_word<S, false>(run.word(i)));
      return;
    }
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < run.words; i += kTile) write(to + run.word(i), get_word<S, true>(run.word(i)));
  }

  // 16 bytes of global memory from the j-th number of a run on, which are neighbours in shared memory too or are not.
  template <class S, bool neighbours>
  FK_INLINE void put_word(uint32_t j, const Word<16>& word) const {
    constexpr uint32_t n = Run<S>::n, m = 16 / sizeof(T);
    S values[n];
    std::memcpy(values, &word, 16);
#pragma unroll
    for (uint32_t k = 0; k < n; k += m) {
      T wide[m];
#pragma unroll
      for (uint32_t l = 0; l < m; ++l) wide[l] = widen<T>(values[k + l]);
      if constexpr (neighbours) {
        write_shared(places_ + shift_ + j + k, wide);
      } else {
#pragma unroll
        for (uint32_t l = 0; l < m; ++l) *place(j + k + l) = wide[l];
      }
    }
  }

  template <class S, bool neighbours>
  FK_INLINE Word<16> get_word(uint32_t j) const {
    constexpr uint32_t n = Run<S>::n, m = 16 / sizeof(T);
    S values[n];
#pragma unroll
    for (uint32_t k = 0; k < n; k += m) {
      T wide[m];
      if constexpr (neighbours) {
        read_shared(places_ + shift_ + j + k, wide);
      } else {
#pragma unroll
        for (uint32_t l = 0; l < m; ++l) wide[l] = *place(j + k + l);
      }
#pragma unroll
      for (uint32_t l = 0; l < m; ++l) values[k + l] = narrow<S>(wide[l]);
    }
    Word<16> word;
    std::memcpy(&word, values, 16);
    return word;
  }

  T* places_;
  const Divisor& by_parameters_;
  uint32_t shift_ = 0;
};

// The row and the column of this thread.
FK_INLINE Segment segment_of(const Tiling& t, const Share& share, const Event& event) {
  const uint32_t number = t.by_columns.quotient(threadIdx.x);
  Segment s = share.row(event, number);
  s.lane = threadIdx.x - number * t.columns;
  s.first_lane = number < share.rows;
  if (!s.first_lane) s.count = 0;
  return s;
}

// Stores the sums over the rows of a block: a tree over the threads of a row, in shared memory.
template <class T>
FK_INLINE void store_row_sums(T sum, T* shared, const Tiling& t, const Share& share, const Segment& s, T* sums) {
  __syncthreads();
  shared[threadIdx.x] = sum;
  for (uint32_t apart = t.tree; apart > 0; apart /= 2) {
    __syncthreads();
    if (s.first_lane && s.lane < apart && s.lane + apart < t.columns)
      shared[threadIdx.x] += shared[threadIdx.x + apart];
  }
  __syncthreads();
  if (threadIdx.x < share.rows)
    store(sums + ((share.first_row + threadIdx.x) * t.segments + share.piece), shared[threadIdx.x * t.columns]);
}

FK_INLINE void copy_bits(uint32_t bytes, const char* from, char* to) {
  if (bytes == 8) return write(to, read<Word<8>>(from));
  if (bytes == 4) return write(to, read<Word<4>>(from));
  write(to, read<Word<2>>(from));
}

template <class T, int bins, bool staged>
__global__ void __launch_bounds__(kTile, kForwardBlocks<T>)
    forward_kernel(const __grid_constant__ ForwardArguments<T> a) {
  FK_DYNAMIC_SHARED(T, shared);
  copy_passive(a.passive, a.tiling);
  const Share share(a.tiling, a.event);
  const Segment s = segment_of(a.tiling, share, a.event);
  T sum = T(0);
#pragma unroll 1
  for (uint32_t first = 0; first < share.count; first += a.tiling.columns) {
    const Turn turn(s, share, a.tiling, first);
    bool kept = false;
    T x = T(0);
    if (turn.exists) {
      x = load_as<T>(a.x_dtype, turn.locate(a.x));
      kept = a.mask.data && load(turn.locate(a.mask));
    }
    SplineOutput<T> out{x, T(0)};
    if constexpr (staged) {
      Tile<T> tile(shared, a.by_parameters);
      if (first > 0) __syncthreads();
      tile.fill(a.raw, turn);
      __syncthreads();
      if (turn.exists && !kept) out = forward_element<bins>(a.spline, tile.own(), x);
    } else if (turn.exists && !kept) {
      const Direct<T> numbers{turn.locate(a.raw.first), nullptr, a.raw.step, 0, a.raw.dtype};
      out = forward_element<bins>(a.spline, numbers, x);
    }
    if (kept)
      copy_bits(a.passive.element_bytes, turn.locate(a.x), turn.locate(a.y));
    else if (turn.exists)
      store_as(a.x_dtype, turn.locate(a.y), out.y);
    sum += out.log_det;
  }
  store_row_sums(sum, shared, a.tiling, share, s, a.sums);
}

// Returns the gradient of x.
template <int bins, class T, class Numbers>
FK_INLINE void backward_turn(const BackwardArguments<T>& a, const Turn& turn, const Numbers& numbers, bool kept, T x,
                             T grad_y, T grad_log_det) {
  if (!turn.exists) return;
  const bool of_raw = a.grad_raw.first.data != nullptr;
  if (!kept) {
    const T grad_x = backward_element<bins>(a.spline, numbers, x, grad_y, grad_log_det, of_raw);
    if (a.grad_x.data) store_as(a.x_dtype, turn.locate(a.grad_x), grad_x);
    return;
  }
  if (of_raw)
    for (uint32_t i = 0; i < a.by_parameters.divisor; ++i) numbers.put(i, T(0));
  if (a.grad_x.data == nullptr) return;
  if (a.grad_y.data)
    copy_bits(a.passive.element_bytes, turn.locate(a.grad_y), turn.locate(a.grad_x));
  else
    store_as(a.x_dtype, turn.locate(a.grad_x), T(0));
}

template <class T, int bins, bool staged>
__global__ void __launch_bounds__(kTile, kBackwardBlocks<T, bins>)
    backward_kernel(const __grid_constant__ BackwardArguments<T> a) {
  FK_DYNAMIC_SHARED(T, shared);
  copy_passive(a.passive, a.tiling);
  const Share share(a.tiling, a.event);
  const Segment s = segment_of(a.tiling, share, a.event);
  T grad_log_det = T(0);
  if (a.grad_log_det && s.count > 0) grad_log_det = load(a.grad_log_det + s.row * a.grad_log_det_stride);
#pragma unroll 1
  for (uint32_t first = 0; first < share.count; first += a.tiling.columns) {
    const Turn turn(s, share, a.tiling, first);
    bool kept = false;
    T x = T(0), grad_y = T(0);
    if (turn.exists) {
      x = load_as<T>(a.x_dtype, turn.locate(a.saved));
      if (a.grad_y.data) grad_y = load_as<T>(a.x_dtype, turn.locate(a.grad_y));
      kept = a.mask.data && load(turn.locate(a.mask));
    }
    if constexpr (staged) {
      Tile<T> tile(shared, a.by_parameters);
      if (first > 0) __syncthreads();
      tile.fill(a.raw, turn);
      __syncthreads();
      backward_turn<bins>(a, turn, tile.own(), kept, x, grad_y, grad_log_det);
      __syncthreads();
      if (a.grad_raw.first.data) tile.empty(a.grad_raw, turn);
    } else {
      const Direct<T> numbers{turn.locate(a.raw.first), turn.locate(a.grad_raw.first), a.raw.step, a.grad_raw.step,
                              a.raw.dtype};
      backward_turn<bins>(a, turn, numbers, kept, x, grad_y, grad_log_det);
    }
  }
}

}  // namespace flowkernels::cuda::spline
