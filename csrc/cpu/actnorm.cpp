#include "cpu/actnorm.h"

#include <cstdlib>
#include <new>

#include "cpu/memory.h"
#include "cpu/sums.h"
#include "flow/math.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

constexpr int64_t kColumns = 64;     // at least so many, where rows of few channels can be taken several at a time
constexpr int64_t kRun = 256;        // neighbouring pixels that are summed before doubles take over
constexpr int64_t kRowsSummed = 32;  // rows that are
constexpr int64_t kBlock = 1024;     // columns that one thread sums at a time, in the first-level cache
constexpr int64_t kMostParts = 64;   // of the sums over a batch
constexpr int64_t kPart = 16384;     // elements of each, at least

// How elements are walked: as rows of columns, each with a scale and a shift of its own.
template <class T>
struct Lines {
  int64_t rows, columns, total,
      step;          // `total` elements, in the last row fewer than in others; `step` between x's rows
  T *scale, *shift;  // of each column

  Lines(const Actnorm& plan, const T* log_scale, const T* given_shift) {
    const int64_t lines = plan.rows * (plan.channels_last ? plan.pixels : 1);
    const bool dense = plan.channels_last && (plan.pixels > 1 || plan.row_stride == plan.channels);
    const int64_t at_once = dense ? ceil_divide(kColumns, plan.channels) : 1;
    columns = plan.channels * at_once;
    total = lines * plan.channels;
    rows = ceil_divide(lines, at_once);
    step = dense ? columns : plan.row_stride;
    scale = static_cast<T*>(std::malloc(2 * columns * sizeof(T)));
    if (scale == nullptr) throw std::bad_alloc();
    shift = scale + columns;
    for (int64_t c = 0; c < plan.channels; ++c) scale[c] = math::exp(plan.inverse ? -log_scale[c] : log_scale[c]);
    for (int64_t c = plan.channels; c < columns; ++c) scale[c] = scale[c - plan.channels];
    for (int64_t c = 0; c < columns; ++c) shift[c] = given_shift[c % plan.channels];
  }
  ~Lines() { std::free(scale); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  int64_t length(int64_t row) const { return smaller(columns, total - row * columns); }
};

template <bool inverse, class T>
FK_INLINE T normalise(T x, T scale, T shift) {
  return inverse ? (x - shift) * scale : x * scale + shift;
}

template <bool inverse, class T>
void forward_lines(const Lines<T>& lines, const T* x, T* y) {
  const T *scale = lines.scale, *shift = lines.shift;
#pragma omp parallel for schedule(static) if (lines.total >= kThreadedElements)
  for (int64_t r = 0; r < lines.rows; ++r) {
    const T* from = x + r * lines.step;
    T* to = y + r * lines.columns;
    const int64_t length = lines.length(r);
#pragma omp simd
    for (int64_t c = 0; c < length; ++c) to[c] = normalise<inverse>(from[c], scale[c], shift[c]);
  }
}

template <bool inverse, class T>
void forward_planes(const Actnorm& plan, const Lines<T>& lines, const T* x, T* y) {
  const int64_t planes = plan.rows * plan.channels;
#pragma omp parallel for schedule(static) if (planes * plan.pixels >= kThreadedElements)
  for (int64_t p = 0; p < planes; ++p) {
    const int64_t row = p / plan.channels, c = p % plan.channels;
    const T* from = x + row * plan.row_stride + c * plan.pixels;
    T* to = y + p * plan.pixels;
    const T scale = lines.scale[c], shift = lines.shift[c];
#pragma omp simd
    for (int64_t i = 0; i < plan.pixels; ++i) to[i] = normalise<inverse>(from[i], scale, shift);
  }
}

template <bool inverse, class T>
void forward(const Actnorm& plan, const ActnormForwardCall& call) {
  const T *x = static_cast<const T*>(call.x), *log_scale = static_cast<const T*>(call.log_scale);
  const Lines<T> lines(plan, log_scale, static_cast<const T*>(call.shift));
  T* y = static_cast<T*>(call.y);
  advise_huge_pages(y, plan.rows * plan.channels * plan.pixels * sizeof(T));
  if (plan.channels_last) {
    forward_lines<inverse>(lines, x, y);
  } else {
    forward_planes<inverse>(plan, lines, x, y);
  }
  const double log_det = sum(log_scale, plan.channels) * static_cast<double>(inverse ? -plan.pixels : plan.pixels);
  fill(static_cast<T*>(call.log_det), static_cast<T>(log_det), plan.rows);
}

// Sums over a part of the batch, of gradients and of their products with x, or with x - shift.
struct Sums {
  double *grad, *product;
};

// Rows `begin` to `end` of columns from `first` on, a block of them.
template <bool inverse, class T>
void backward_lines(const Lines<T>& lines, int64_t begin, int64_t end, int64_t first, const T* grad_y, const T* x,
                    T* grad_x, Sums sums) {
  const T *scale = lines.scale + first, *shift = lines.shift + first;
  T grad[kBlock] = {}, product[kBlock] = {};
  for (int64_t r = begin; r < end; ++r) {
    const T *of_y = grad_y + r * lines.columns + first, *from = x + r * lines.step + first;
    const int64_t length = smaller(kBlock, lines.length(r) - first);
#pragma omp simd
    for (int64_t c = 0; c < length; ++c) {
      grad[c] += of_y[c];
      product[c] += of_y[c] * (inverse ? from[c] - shift[c] : from[c]);
    }
    if (grad_x != nullptr) {
      T* to = grad_x + r * lines.columns + first;
#pragma omp simd
      for (int64_t c = 0; c < length; ++c) to[c] = of_y[c] * scale[c];
    }
    if ((r - begin) % kRowsSummed != kRowsSummed - 1 && r != end - 1) continue;
    for (int64_t c = 0; c < smaller(kBlock, lines.columns - first); ++c) {
      sums.grad[first + c] += grad[c];
      sums.product[first + c] += product[c];
      grad[c] = product[c] = 0;
    }
  }
}

template <bool inverse, class T>
void backward_plane(int64_t pixels, T scale, T shift, const T* grad_y, const T* x, T* grad_x, double* grad,
                    double* product) {
  for (int64_t start = 0; start < pixels; start += kRun) {
    const int64_t end = smaller(start + kRun, pixels);
    T of_grad = 0, of_product = 0;
#pragma omp simd reduction(+ : of_grad, of_product)
    for (int64_t i = start; i < end; ++i) {
      of_grad += grad_y[i];
      of_product += grad_y[i] * (inverse ? x[i] - shift : x[i]);
    }
    *grad += of_grad;
    *product += of_product;
  }
  if (grad_x == nullptr) return;
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) grad_x[i] = grad_y[i] * scale;
}

template <bool inverse, class T>
void backward_planes(const Actnorm& plan, const Lines<T>& lines, int64_t begin, int64_t end, const T* grad_y,
                     const T* x, T* grad_x, Sums sums) {
  for (int64_t p = begin * plan.channels; p < end * plan.channels; ++p) {
    const int64_t c = p % plan.channels, offset = p * plan.pixels;
    const T* from = x + p / plan.channels * plan.row_stride + c * plan.pixels;
    backward_plane<inverse>(plan.pixels, lines.scale[c], lines.shift[c], grad_y + offset, from,
                            grad_x == nullptr ? grad_x : grad_x + offset, sums.grad + c, sums.product + c);
  }
}

// The gradients of the parameters from the sums of each part.
template <bool inverse, class T>
void finish(const Actnorm& plan, const Lines<T>& lines, int64_t parts, const double* sums,
            const ActnormBackwardCall& call) {
  const T* grad_log_det = static_cast<const T*>(call.grad_log_det);
  double of_log_det = 0;
  for (int64_t r = 0; r < plan.rows; ++r) of_log_det += grad_log_det[r * call.grad_log_det_stride];
  of_log_det *= static_cast<double>(plan.pixels);
  for (int64_t channel = 0; channel < plan.channels; ++channel) {
    double grad = 0, product = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const double* own = sums + part * 2 * lines.columns;
      for (int64_t c = channel; c < lines.columns; c += plan.channels) {
        grad += own[c];
        product += own[lines.columns + c];
      }
    }
    const double scale = lines.scale[channel], of_log_scale = scale * product + of_log_det;
    static_cast<T*>(call.grad_log_scale)[channel] = static_cast<T>(inverse ? -of_log_scale : of_log_scale);
    static_cast<T*>(call.grad_shift)[channel] = static_cast<T>(inverse ? -scale * grad : grad);
  }
}

// Parts of the batch do not depend on the number of threads, and neither do the sums. A part has rows enough that its
// sums, as long as a row, cost less than they do.
template <bool inverse, class T>
void backward(const Actnorm& plan, const ActnormBackwardCall& call) {
  const Lines<T> lines(plan, static_cast<const T*>(call.log_scale), static_cast<const T*>(call.shift));
  const T *grad_y = static_cast<const T*>(call.grad_y), *x = static_cast<const T*>(call.x);
  T* grad_x = static_cast<T*>(call.grad_x);
  const int64_t count = plan.rows * plan.channels * plan.pixels;
  const int64_t rows = plan.channels_last ? lines.rows : plan.rows;
  const int64_t most = plan.channels_last ? ceil_divide(rows, kRowsSummed) : rows;
  const int64_t blocks = plan.channels_last ? ceil_divide(lines.columns, kBlock) : 1;
  const int64_t wanted = smaller(smaller(most, kMostParts), ceil_divide(count, kPart * blocks));
  const int64_t of_part = wanted > 0 ? ceil_divide(rows, wanted) : 1, parts = ceil_divide(rows, of_part);
  const Zeros sums(parts * 2 * lines.columns);
  if (grad_x != nullptr) advise_huge_pages(grad_x, count * sizeof(T));
#pragma omp parallel for schedule(static) if (count >= kThreadedElements)
  for (int64_t task = 0; task < parts * blocks; ++task) {
    const int64_t part = task / blocks, begin = part * of_part, end = smaller(begin + of_part, rows);
    double* own = sums.values + part * 2 * lines.columns;
    if (plan.channels_last) {
      const int64_t first = task % blocks * kBlock;
      backward_lines<inverse>(lines, begin, end, first, grad_y, x, grad_x, {own, own + lines.columns});
    } else {
      backward_planes<inverse>(plan, lines, begin, end, grad_y, x, grad_x, {own, own + lines.columns});
    }
  }
  finish<inverse>(plan, lines, parts, sums.values, call);
}

}  // namespace

void actnorm_forward(const Actnorm& plan, const ActnormForwardCall& call) {
  if (plan.double_precision)
    return plan.inverse ? forward<true, double>(plan, call) : forward<false, double>(plan, call);
  return plan.inverse ? forward<true, float>(plan, call) : forward<false, float>(plan, call);
}

void actnorm_backward(const Actnorm& plan, const ActnormBackwardCall& call) {
  if (plan.double_precision)
    return plan.inverse ? backward<true, double>(plan, call) : backward<false, double>(plan, call);
  return plan.inverse ? backward<true, float>(plan, call) : backward<false, float>(plan, call);
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
