// One layer of one planar row on the device.
#pragma once

#include "cuda/stack.cuh"
#include "flow/planar.h"

namespace flowkernels::cuda::stack {

template <class T>
struct PlanarConstants {
  Activation activation;
  T negative_slope;
};

template <class T, int n>
class Planar : public Row<T, n> {
 public:
  using Number = T;
  using Constants = PlanarConstants<T>;
  using Point = PlanarPoint<T>;
  static constexpr int kPerLane = n, kVectors = 2, kNumbers = 2;  // gradients of u', w; of b, log p
  static constexpr int kRecord = 2;
  static constexpr bool kNeedsInput = false;  // but for gradients of parameters
  static constexpr int kTable = 3;            // numbers of a layer in the workspace's table: factor, rest, p

  // What is found once where all rows share it: u' = (u + factor w) + rest w.
  struct alignas(16) Numbers {
    T factor, rest, p, b;
  };

  struct Layer {
    T corrected[n], w[n];  // u', w
    T p, b;
  };

  FK_INLINE Planar(const Stack<T>& stack, const Constants& constants) : Row<T, n>(stack), constants_(constants) {}

  FK_INLINE void prepare() {
    FK_SHARED(Numbers, table, kTableDepth);
    table_ = table;
    if (this->stack.per_example || this->stack.table != nullptr) return;
    for (int first = 0; first < this->stack.depth; first += this->rows())
      constrain(first, [&](int k, const Numbers& found) {
        table[k] = found;
        table[k].b = this->number(2, k);
      });
    __syncthreads();
  }

  // A table in the workspace, of as many layers from `first` on as a block has rows.
  FK_INLINE void fill(T* table, int first) {
    constrain(first, [&](int k, const Numbers& numbers) {
      store(table + kTable * k, numbers.factor);
      store(table + kTable * k + 1, numbers.rest);
      store(table + kTable * k + 2, numbers.p);
    });
  }

  FK_INLINE Layer layer(int k) {
    Layer layer;
    T u[n];
    this->vector(u, 0, k);
    this->vector(layer.w, 1, k);
    Numbers numbers;
    if (this->stack.per_example) {
      numbers = constraint(u, layer.w);
      numbers.b = this->number(2, k);
    } else if (const T* const table = this->stack.table) {
      const T* const at = table + kTable * k;
      numbers = {load(at), load(at + 1), load(at + 2), this->number(2, k)};
    } else {
      numbers = table_[k];
    }
#pragma unroll
    for (int j = 0; j < n; ++j)
      layer.corrected[j] = corrected(u[j], layer.w[j], numbers.factor) + numbers.rest * layer.w[j];
    layer.p = numbers.p;
    layer.b = numbers.b;
    return layer;
  }

  FK_INLINE Point find(const Layer& layer, const T (&z)[n]) { return at(this->sum(dot(layer.w, z)) + layer.b); }

  FK_INLINE Point advance(int k, T (&z)[n]) {
    const Layer layer = this->layer(k);
    const Point point = find(layer, z);
    move(z, layer, point.h);
    det_.multiply(planar_det(point, layer.p));
    return point;
  }

  FK_INLINE void retreat(int k, T (&z)[n]) {
    const Layer layer = this->layer(k);
    const Point point = at(solve(this->sum(dot(layer.w, z)) + layer.b, layer.p));
    move(z, layer, -point.h);
    det_.multiply(planar_det(point, layer.p));
  }

  FK_INLINE void settle() { det_.settle(); }
  FK_INLINE T log_det() const { return det_.value(); }

  FK_INLINE static void pack(const Point& point, T (&numbers)[kRecord]) {
    numbers[0] = point.h, numbers[1] = point.slope;
  }
  FK_INLINE Point unpack(const T (&numbers)[kRecord]) const {
    const T h = numbers[0], slope = numbers[1];
    return {h, slope, constants_.activation == Activation::tanh ? h * h : T(1) - slope};
  }

  // Takes g from the layer's output to its input; z, the input of an inverse stack's layer, forward to the next.
  template <class Sink>
  FK_INLINE void backward(int k, const Layer& layer, const Point& point, T (&z)[n], T (&g)[n], T grad_log_det,
                          Sink& sink) {
    const T projection = this->sum(dot(layer.corrected, g));
    PlanarGradient<T> grad;
    with_activation(constants_.activation, [&](auto activation) {
      grad = planar_backward<activation.value>(point, layer.p, projection, grad_log_det, this->stack.inverse);
    });
    if (!this->exists) grad = {};
    if (this->stack.inverse) move(z, layer, point.h);
    if (sink.wanted()) {
      T vectors[kVectors * n], numbers[kNumbers] = {grad.along, grad.of_log_p};
#pragma unroll
      for (int j = 0; j < n; ++j) vectors[j] = grad.of_u * g[j], vectors[n + j] = grad.along * z[j];
      if (this->stack.per_example) through_constraint(k, layer.w, grad.of_log_p, vectors);
      sink.put(*this, k, vectors, numbers);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] += grad.along * layer.w[j];
  }

 private:
  // Calls put(k, numbers) for as many layers as a block has rows; all threads call this.
  template <class F>
  FK_INLINE void constrain(int first, F&& put) {
    const int k = first + this->group(), last = this->stack.depth - 1;
    T u[n], w[n];
    this->vector(u, 0, k < last ? k : last);
    this->vector(w, 1, k < last ? k : last);
    const Numbers numbers = constraint(u, w);
    if (k <= last && this->is_first_lane()) put(k, numbers);
  }

  // But for b.
  FK_INLINE Numbers constraint(const T (&u)[n], const T (&w)[n]) {
    T sums[2] = {dot(w, u), dot(w, w)}, rounded[n];
    Row<T, n>::sum(sums);
    const PlanarConstraint<T> c = planar_constraint(sums[0], sums[1]);
#pragma unroll
    for (int j = 0; j < n; ++j) rounded[j] = corrected(u[j], w[j], c.factor);
    return {c.factor, planar_constraint_rest(this->sum(dot(w, rounded)), sums[1], c.p), c.p, T(0)};
  }

  FK_INLINE static T corrected(T u, T w, T factor) { return u + factor * w; }

  FK_INLINE Point at(T a) const {
    Point point;
    with_activation(constants_.activation,
                    [&](auto activation) { point = planar_point<activation.value>(a, constants_.negative_slope); });
    return point;
  }

  // Lanes of a row do the same; rows of a warp wait for the slowest.
  FK_INLINE T solve(T c, T p) const {
    if (constants_.activation != Activation::tanh) return planar_solve_leaky_relu(c, p, constants_.negative_slope);
    const T magnitude = math::abs(c);
    T a = PlanarSolver<T>::start(magnitude, p);
#pragma unroll 1
    for (int i = 0; i < PlanarSolver<T>::kSteps; ++i) {
      const T next = PlanarSolver<T>::step(a, magnitude, p);
      if (!(next != a)) break;
      a = next;
    }
    return c < T(0) ? -a : a;
  }

  FK_INLINE static void move(T (&z)[n], const Layer& layer, T h) {
#pragma unroll
    for (int j = 0; j < n; ++j) z[j] += layer.corrected[j] * h;
  }

  // From gradients of u' and of w beside it to those of u and w.
  FK_INLINE void through_constraint(int k, const T (&w)[n], T grad_log_p, T (&vectors)[kVectors * n]) {
    T u[n], of_corrected[n];
    this->vector(u, 0, k);
#pragma unroll
    for (int j = 0; j < n; ++j) of_corrected[j] = vectors[j];
    T sums[3] = {dot(w, u), dot(w, w), dot(w, of_corrected)};
    Row<T, n>::sum(sums);
    const PlanarConstraintGradient<T> c = planar_constraint_backward(sums[0], sums[1], sums[2], grad_log_p);
#pragma unroll
    for (int j = 0; j < n; ++j) {
      vectors[n + j] += c.factor * (of_corrected[j] - T(2) * c.along * w[j]) + c.of_s * u[j];
      vectors[j] += c.of_s * w[j];
    }
  }

  const Constants& constants_;
  const Numbers* table_;
  LogSum<T> det_;
};

template <class T>
struct PlanarFinish {
  using Number = T;

  FK_INLINE static void run(const FinishArguments<T>& a) {
    const uint32_t features = a.features;
    const int64_t k = blockIdx.x, at = k * features;
    const T *const u = a.parameters[0] + at, *const w = a.parameters[1] + at;
    T *const grad_u = a.grads[0] + at, *const grad_w = a.grads[1] + at;
    FK_SHARED(T, numbers, 2);  // gradients of b and log p
    sum_partials(a, 2 * features + 2, [&](uint32_t i, T sum) {
      if (i >= 2 * features)
        numbers[i - 2 * features] = sum;
      else
        store(i < features ? grad_u + i : grad_w + (i - features), sum);
    });
    T sums[3] = {};
    for (uint32_t i = threadIdx.x; i < features; i += kThreads) {
      const T w_i = load(w + i);
      sums[0] += w_i * load(u + i);
      sums[1] += w_i * w_i;
      sums[2] += w_i * load(grad_u + i);
    }
    uint32_t turn = 0;
    sum_row(sums, kBlockBits, turn);
    const PlanarConstraintGradient<T> c = planar_constraint_backward(sums[0], sums[1], sums[2], numbers[1]);
    for (uint32_t i = threadIdx.x; i < features; i += kThreads) {
      const T w_i = load(w + i), of_corrected = load(grad_u + i);
      store(grad_w + i, load(grad_w + i) + c.factor * (of_corrected - T(2) * c.along * w_i) + c.of_s * load(u + i));
      store(grad_u + i, of_corrected + c.of_s * w_i);
    }
    if (threadIdx.x == 0) store(a.grads[2] + k, numbers[0]);
  }
};

}  // namespace flowkernels::cuda::stack
