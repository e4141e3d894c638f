// Stacks of layers over rows, for planar and radial flows: a tile of rows lies feature by feature, its rows side by
// side in vectors, and goes through all layers before the next tile is touched. Included like tiles.h: nothing here
// may be shared by the linker between instruction sets.
#pragma once

#include <cstdlib>
#include <new>
#include <type_traits>

#include "cpu/memory.h"
#include "cpu/tiles.h"
#include "cpu/transpose.h"
#include "flow/stack.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline Vector<T> vector_at(const T* address) {
  return *reinterpret_cast<const Vector<T>*>(address);
}

// Aligned memory that is not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator T*() const { return data_; }

 private:
  T* data_;
};

// sums[r] += the sum over features of term(d, r), which is a vector of neighbouring rows. Long sums have two levels.
template <class T, int rows, class Term>
inline void sum_features(int64_t features, T* sums, Term&& term) {
  constexpr int lanes = kVectorBytes / sizeof(T), all = rows / lanes, group = all < 4 ? all : 4;
  constexpr int64_t block = 64;
  for (int first = 0; first < rows; first += group * lanes) {
    for (int64_t start = 0; start < features; start += block) {
      const int64_t end = smaller(start + block, features);
      Vector<T> partial[group] = {};
      for (int64_t d = start; d < end; ++d) {
#pragma GCC unroll 4
        for (int j = 0; j < group; ++j) partial[j] += term(d, first + j * lanes);
      }
#pragma GCC unroll 4
      for (int j = 0; j < group; ++j) {
        *reinterpret_cast<Vector<T>*>(sums + first + j * lanes) += partial[j];
      }
    }
  }
}

template <class T, int rows>
inline T sum_lanes(const T* terms) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int r = 0; r < rows; ++r) total += terms[r];
  return total;
}

// sums[d] += the sum over rows of term(d, r), which is a vector of neighbouring rows. The lanes of four features are
// added together: those of one alone would cost more than the rest.
template <class T, int rows, class Term>
inline void sum_over_rows(int64_t features, double* sums, Term&& term) {
  constexpr int lanes = kVectorBytes / sizeof(T);
  const auto total = [&](int64_t d) {
    Vector<T> partial = term(d, 0);
#pragma GCC unroll 16
    for (int r = lanes; r < rows; r += lanes) partial += term(d, r);
    return partial;
  };
  int64_t d = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; d + 4 <= features; d += 4) {
      Wide partial[4];
      float totals[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) partial[i] = (Wide)total(d + i);
      sum_fours(partial, totals);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[d + i] += totals[i];
    }
  }
  for (; d < features; ++d) {
    alignas(64) T partial[lanes];
    *reinterpret_cast<Vector<T>*>(partial) = total(d);
    sums[d] += sum_lanes<T, lanes>(partial);
  }
}

// The logarithm of a product with a factor per layer, for each row of a tile.
template <class T, int rows>
class LogFactors {
 public:
  void clear() {
    count_ = 0;
    for (int r = 0; r < rows; ++r) product_[r] = T(1), sum_[r] = T(0);
  }

  void multiply(const T* factor) {
    int wild = 0;
#pragma omp simd reduction(| : wild)
    for (int r = 0; r < rows; ++r) {
      const bool taken = LogProduct<T>::takes(factor[r]);
      wild |= taken ? 0 : 1;
      product_[r] *= taken ? factor[r] : T(1);
    }
    if (wild) add_rest(factor);
    if (++count_ == LogProduct<T>::kFactors) flush();
  }

  // Products of 1, for the caller to multiply with as many factors as divide_layers says.
  T* products() {
    flush();
    count_ = 1;
    return product_;
  }

  const T* value() {
    flush();
    return sum_;
  }

 private:
  void add_rest(const T* factor) {
    for (int r = 0; r < rows; ++r) {
      if (!LogProduct<T>::takes(factor[r])) sum_[r] += math::log(factor[r]);
    }
  }

  void flush() {
    if (count_ == 0) return;
#pragma omp simd
    for (int r = 0; r < rows; ++r) {
      sum_[r] += math::log(product_[r]);
      product_[r] = T(1);
    }
    count_ = 0;
  }

  alignas(64) T product_[rows];
  alignas(64) T sum_[rows];
  int count_;
};

// Which layers have a logarithm in common, if the factors of layer k lie between 1 and extreme[k]: as many as cannot
// take a product out of the range of numbers. They end before end[first], first being the first of them.
template <class T>
inline void divide_layers(const T* extreme, int64_t depth, int64_t* end) {
  constexpr double largest = sizeof(T) == 4 ? 1e36 : 1e280;
  double least = 1, most = 1;
  for (int64_t first = 0, k = 0; k < depth; ++k) {
    const double factor = extreme[k];
    least *= factor < 1 ? factor : 1;
    most *= factor > 1 ? factor : 1;
    if (least < 1 / largest || largest < most) {
      first = k;
      least = factor < 1 ? factor : 1;
      most = factor > 1 ? factor : 1;
    }
    end[first] = k + 1;
  }
}

constexpr int kFew = kVectorBytes == 64 ? 8 : 6;  // features that fit in registers, of which AVX-512 has twice as many

// Calls f with a small count as a compile-time constant, and says whether it is one.
template <int constant = 1, class F>
FK_INLINE bool with_few(int64_t count, F&& f) {
  if constexpr (constant > kFew) {
    return false;
  } else {
    if (count != constant) return with_few<constant + 1>(count, f);
    f(std::integral_constant<int, constant>{});
    return true;
  }
}

// Layers with shared parameters, `Run`, for rows of few features, which stay in registers from layer to layer:
//   features                 how many
//   factors                  how many factors the determinant of a layer has
//   pass(k, point, product)  moves a point through layer k, multiplies the products with the factors
// This takes `streams` rows, which hide each other's latency, through layers `first` to `end`, at least one. It is `do`
// because g++ does not make vectors of rows where a loop over layers might have no round.
template <int rows, int streams, class Run, class T>
FK_INLINE void run_rows(const Run& run, int64_t first, int64_t end, T* z, T* const* products, int r) {
  constexpr int step = rows / streams;
  T point[streams][Run::features], product[streams][Run::factors];
#pragma GCC unroll 8
  for (int i = 0; i < streams; ++i) {
#pragma GCC unroll 8
    for (int d = 0; d < Run::features; ++d) point[i][d] = z[d * rows + i * step + r];
#pragma GCC unroll 8
    for (int j = 0; j < Run::factors; ++j) product[i][j] = T(1);
  }
  int64_t k = first;
  do {
#pragma GCC unroll 8
    for (int i = 0; i < streams; ++i) run.pass(k, point[i], product[i]);
  } while (++k < end);
#pragma GCC unroll 8
  for (int i = 0; i < streams; ++i) {
#pragma GCC unroll 8
    for (int d = 0; d < Run::features; ++d) z[d * rows + i * step + r] = point[i][d];
#pragma GCC unroll 8
    for (int j = 0; j < Run::factors; ++j) products[j][i * step + r] = product[i][j];
  }
}

// All layers for the rows of a tile; `end` is from divide_layers.
template <class Run, class T, int rows>
void run_tile(Run run, int64_t depth, const int64_t* end, T* z, LogFactors<T, rows>* factors) {
  constexpr int streams = 4;
  for (int64_t first = 0; first < depth; first = end[first]) {
    T* product[Run::factors];
    for (int j = 0; j < Run::factors; ++j) product[j] = factors[j].products();
    const int64_t last = end[first];
#pragma omp simd
    for (int r = 0; r < rows / streams; ++r) run_rows<rows, streams>(run, first, last, z, product, r);
  }
}

// Rows of a tensor (rows, columns) that a tile holds. Lanes beyond the last row repeat it.
struct TileRows {
  int64_t first, last;

  int64_t operator[](int r) const { return smaller(first + r, last); }
  bool fill(int rows) const { return first + rows - 1 <= last; }
};

// tile[d * rows + r] = tensor[row r, d], where rows follow each other without a gap.
template <int rows, int columns, class T, class From>
inline void load_dense(const From* __restrict from, T* __restrict tile) {
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < columns; ++d) tile[d * rows + r] = convert(from[r * columns + d], tile);
  }
}

template <int rows, int columns, class T, class To>
inline void store_dense(const T* __restrict tile, To* __restrict to) {
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < columns; ++d) to[r * columns + d] = convert(tile[d * rows + r], to);
  }
}

// The same for any strides.
template <int rows, class T, class From>
inline void load_columns(const From* from, const int64_t* stride, TileRows which, int64_t columns, T* tile) {
  if (which.fill(rows) && stride[0] == columns && stride[1] == 1) {
    const From* first = from + which.first * columns;
    if (with_few(columns, [&](auto few) { load_dense<rows, few.value>(first, tile); })) return;
  }
  for (int r = 0; r < rows; ++r) {
    const From* row = from + which[r] * stride[0];
    for (int64_t d = 0; d < columns; ++d) tile[d * rows + r] = convert(row[d * stride[1]], tile);
  }
}

template <int rows, class T>
inline void load_tile(Dtype dtype, const void* from, const int64_t* stride, TileRows which, int64_t columns, T* tile) {
  if (dtype == kDtype<T>) return load_columns<rows>(static_cast<const T*>(from), stride, which, columns, tile);
  if constexpr (sizeof(T) == 4) {
    if (dtype == Dtype::float16)
      return load_columns<rows>(static_cast<const Half*>(from), stride, which, columns, tile);
    load_columns<rows>(static_cast<const BFloat16*>(from), stride, which, columns, tile);
  }
}

// The other way, into a tensor whose columns are neighbours.
template <int rows, class T, class To>
inline void store_columns(const T* tile, TileRows which, int64_t columns, int64_t stride, To* to) {
  if (which.fill(rows) && stride == columns) {
    To* first = to + which.first * columns;
    if (with_few(columns, [&](auto few) { store_dense<rows, few.value>(tile, first); })) return;
  }
  for (int r = 0; r < rows && which.first + r <= which.last; ++r) {
    To* row = to + (which.first + r) * stride;
    for (int64_t d = 0; d < columns; ++d) row[d] = convert(tile[d * rows + r], row);
  }
}

template <int rows, class T>
inline void store_tile(Dtype dtype, const T* tile, TileRows which, int64_t columns, void* to) {
  if (dtype == kDtype<T>) return store_columns<rows>(tile, which, columns, columns, static_cast<T*>(to));
  if constexpr (sizeof(T) == 4) {
    if (dtype == Dtype::float16) return store_columns<rows>(tile, which, columns, columns, static_cast<Half*>(to));
    store_columns<rows>(tile, which, columns, columns, static_cast<BFloat16*>(to));
  }
}

constexpr int kRows = 64;                    // of a tile
constexpr int64_t kStoredBytes = 1 << 20;    // backward keeps the inputs of all layers of a tile if they take less
constexpr int64_t kPartialBytes = 64 << 20;  // of the sums over chunks of rows
constexpr int64_t kChunks = 64;
constexpr int64_t kThreadedWork = 16384;

// Calls f with a null pointer to the class of layers that a call needs.
template <template <bool, int, class> class Layers, class F>
inline void with_layers(const StackPlan& plan, F&& f) {
  const auto of_number = [&](auto number) {
    using T = decltype(number);
    if (plan.per_example) return f(static_cast<Layers<true, kRows, T>*>(nullptr));
    f(static_cast<Layers<false, kRows, T>*>(nullptr));
  };
  if (plan.x_dtype == Dtype::float64) return of_number(double{});
  of_number(float{});
}

inline bool threaded(const StackPlan& plan, int64_t tiles) {
  return tiles > 1 && plan.rows * plan.depth * (plan.features + 4) >= kThreadedWork;
}

// Layers, a template parameter of what follows, is what an op says about its layers to one thread:
//   rows, Number                      rows of a tile; float or double
//   kSaved                            numbers per row that the formulas of a layer start from
//   select(k, which)                  makes layer k the current one, for the rows of a tile
//   points(z, saved)                  those numbers from the layer's input z
//   solve(y, saved)                   the same from its output
//   advance(z, saved, next)           the layer's output; next may be z
//   retreat(y, saved, next)           the layer's input
//   clear(), determinant(saved)       the log-determinant of the layers since; log_det() has it for each row
//   sweep(z)                          all layers in place, with their determinants, and true; or false, where they are
//                                     not of a kind that can be in registers all the way
//   backward(z, next, saved, g, grad_log_det, sums)
//                                     from a layer's input and output; g, the gradient of what the call makes of the
//                                     layer, becomes that of what it makes it from. Where parameters are shared, their
//                                     gradients are added to `sums`, sums_per_layer(features) numbers for each layer.
template <class Layers>
void by_layers(Layers& layers, const StackPlan& plan, TileRows which, typename Layers::Number* z) {
  alignas(64) typename Layers::Number saved[Layers::kSaved * Layers::rows];
  for (int64_t step = 0; step < plan.depth; ++step) {
    layers.select(plan.inverse ? plan.depth - 1 - step : step, which);
    if (plan.inverse) {
      layers.solve(z, saved);
      layers.determinant(saved);
      layers.retreat(z, saved, z);
    } else {
      layers.points(z, saved);
      layers.determinant(saved);
      layers.advance(z, saved, z);
    }
  }
}

template <class Layers, class Plan>
void forward_tile(Layers& layers, const Plan& plan, const StackForwardCall& call, TileRows which,
                  typename Layers::Number* z) {
  using T = typename Layers::Number;
  const StackPlan& common = plan.common;
  load_tile<Layers::rows>(common.x_dtype, call.x, plan.x_strides, which, common.features, z);
  layers.clear();
  if (common.inverse || !layers.sweep(z)) by_layers(layers, common, which, z);
  store_tile<Layers::rows>(common.x_dtype, z, which, common.features, call.y);
  const T* log_det = layers.log_det();
  for (int r = 0; r < Layers::rows && which.first + r <= which.last; ++r) {
    static_cast<T*>(call.log_det)[which.first + r] = common.inverse ? -log_det[r] : log_det[r];
  }
}

template <class Layers, class Plan>
void forward_tiles(const Plan& plan, const StackForwardCall& call) {
  constexpr int rows = Layers::rows;
  const int64_t tiles = ceil_divide(plan.common.rows, rows);
  const typename Layers::Shared shared(plan.common, call.parameters);
#pragma omp parallel if (threaded(plan.common, tiles))
  {
    Layers layers(plan.common, plan.options, shared, call.parameters, nullptr);
    const Buffer<typename Layers::Number> z(plan.common.features * rows);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < tiles; ++i) {
      forward_tile(layers, plan, call, {i * rows, plan.common.rows - 1}, static_cast<typename Layers::Number*>(z));
    }
  }
}

// The backward pass of one thread. It wants the input of every layer: that of an inverse stack starts from the output
// and meets the layers in the order in which it makes them again. A forward stack keeps them, of a few layers at a
// time where all of them are too many, and then makes those of the layers before from checkpoints.
template <class Layers, class Plan>
class BackwardTile {
  using T = typename Layers::Number;
  static constexpr int rows = Layers::rows;

 public:
  BackwardTile(const Plan& plan, const StackBackwardCall& call, const typename Layers::Shared& shared)
      : plan_(plan),
        call_(call),
        depth_(plan.common.depth),
        size_(plan.common.features * rows),
        segment_(length(depth_, size_)),
        layers_(plan.common, plan.options, shared, call.parameters, call.grad_parameters),
        inputs_((segment_ + 1) * size_),
        saved_(segment_ * Layers::kSaved * rows),
        checkpoints_(ceil_divide(depth_, segment_) * size_),
        g_(size_) {}

  void run(TileRows which, double* sums) {
    const StackPlan& common = plan_.common;
    load(which);
    if (common.inverse) {
      inverse(which, sums);
    } else {
      forward(which, sums);
    }
    if (call_.grad_x != nullptr)
      store_tile<rows>(common.x_dtype, static_cast<const T*>(g_), which, common.features, call_.grad_x);
  }

 private:
  static int64_t length(int64_t depth, int64_t size) {
    const int64_t bytes = size * int64_t{sizeof(T)};
    if (depth * bytes < kStoredBytes) return depth > 1 ? depth : 1;
    const int64_t most = bytes > kStoredBytes / 2 ? 1 : kStoredBytes / 2 / bytes;
    return ceil_divide(depth, ceil_divide(depth, most));
  }

  // Gradients of the lanes beyond the last row are zero, and add nothing to sums.
  void load(TileRows which) {
    const StackPlan& common = plan_.common;
    const int64_t stride = plan_.grad_log_det_stride;
    load_tile<rows>(common.x_dtype, call_.saved, plan_.saved_strides, which, common.features, input(0));
    if (call_.grad_y != nullptr)
      load_tile<rows>(common.x_dtype, call_.grad_y, plan_.grad_y_strides, which, common.features, static_cast<T*>(g_));
    for (int r = 0; r < rows; ++r) {
      const bool exists = which.first + r <= which.last;
      const T* given = static_cast<const T*>(call_.grad_log_det);
      grad_log_det_[r] = given != nullptr && exists ? given[(which.first + r) * stride] : T(0);
      if (call_.grad_y != nullptr && exists) continue;
      for (int64_t d = 0; d < common.features; ++d) g_[d * rows + r] = T(0);
    }
  }

  void inverse(TileRows which, double* sums) {
    for (int64_t k = 0; k < depth_; ++k) {
      T *const z = input(k % 2), *const y = input(1 - k % 2);
      make(k, which, z, y, saved_);
      gradient(k, z, y, saved_, sums);
    }
  }

  void forward(TileRows which, double* sums) {
    const int64_t segments = ceil_divide(depth_, segment_);
    for (int64_t s = 0; s + 1 < segments; ++s) {
      copy(input(0), checkpoint(s));
      for (int64_t k = s * segment_; k < (s + 1) * segment_; ++k) make(k, which, input(0), input(0), saved_);
    }
    for (int64_t s = segments - 1; s >= 0; --s) {
      const int64_t first = s * segment_, count = smaller(segment_, depth_ - first);
      if (s + 1 < segments) copy(checkpoint(s), input(0));
      for (int64_t i = 0; i < count; ++i) make(first + i, which, input(i), input(i + 1), saved(i));
      for (int64_t i = count - 1; i >= 0; --i) {
        if (i + 1 < count) layers_.select(first + i, which);
        gradient(first + i, input(i), input(i + 1), saved(i), sums);
      }
    }
  }

  void make(int64_t k, TileRows which, const T* z, T* next, T* saved) {
    layers_.select(k, which);
    layers_.points(z, saved);
    layers_.advance(z, saved, next);
  }

  void gradient(int64_t k, const T* z, const T* next, const T* saved, double* sums) {
    double* of_layer = sums == nullptr ? nullptr : sums + k * Layers::sums_per_layer(plan_.common.features);
    layers_.backward(z, next, saved, g_, grad_log_det_, of_layer);
  }

  void copy(const T* from, T* to) const {
    for (int64_t i = 0; i < size_; ++i) to[i] = from[i];
  }

  T* input(int64_t i) const { return inputs_ + i * size_; }
  T* saved(int64_t i) const { return saved_ + i * Layers::kSaved * rows; }
  T* checkpoint(int64_t s) const { return checkpoints_ + s * size_; }

  const Plan& plan_;
  const StackBackwardCall& call_;
  const int64_t depth_, size_, segment_;
  Layers layers_;
  const Buffer<T> inputs_, saved_, checkpoints_, g_;
  alignas(64) T grad_log_det_[rows];
};

// How rows are divided for sums over them: into chunks that do not depend on the number of threads.
inline int64_t chunks_of(int64_t tiles, int64_t sums) {
  const int64_t affordable = kPartialBytes / (sums * int64_t{sizeof(double)} + 1);
  return smaller(smaller(kChunks, affordable > 1 ? affordable : 1), tiles);
}

template <class Layers, class Plan>
void backward_tiles(const Plan& plan, const StackBackwardCall& call) {
  constexpr int rows = Layers::rows;
  const StackPlan& common = plan.common;
  const int64_t tiles = ceil_divide(common.rows, rows);
  const bool summed = plan.of_parameters && !common.per_example;
  const int64_t sums = summed ? common.depth * Layers::sums_per_layer(common.features) : 0;
  const int64_t chunks = summed ? chunks_of(tiles, sums) : tiles;
  const Zeros partial(chunks * sums);
  const typename Layers::Shared shared(common, call.parameters);
#pragma omp parallel if (threaded(common, chunks))
  {
    BackwardTile<Layers, Plan> tile(plan, call, shared);
#pragma omp for schedule(static) nowait
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double* of_chunk = summed ? partial.values + chunk * sums : nullptr;
      for (int64_t i = chunk * tiles / chunks; i < (chunk + 1) * tiles / chunks; ++i) {
        tile.run({i * rows, common.rows - 1}, of_chunk);
      }
    }
  }
  if (summed) Layers::finish(common, call, partial.values, chunks);
}

// The sums of one layer over all chunks, in order.
inline void add_chunks(const double* partial, int64_t chunks, int64_t step, int64_t count, double* total) {
  for (int64_t i = 0; i < count; ++i) total[i] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < count; ++i) total[i] += partial[chunk * step + i];
  }
}

}  // namespace
}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
