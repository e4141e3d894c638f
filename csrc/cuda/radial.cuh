// One layer of one radial row on the device.
#pragma once

#include "cuda/stack.cuh"
#include "flow/radial.h"

namespace flowkernels::cuda::stack {

template <class T>
struct RadialConstants {};

template <class T, int n>
class Radial : public Row<T, n> {
 public:
  using Number = T;
  using Constants = RadialConstants<T>;
  static constexpr int kPerLane = n, kVectors = 1, kNumbers = 2;  // gradients of the centre; of alpha, p
  static constexpr int kRecord = 1;
  static constexpr bool kNeedsInput = true;
  static constexpr int kTable = 0;

  struct Layer {
    T center[n];
    RadialLayer<T> numbers;
  };
  struct Point {
    T r;
  };

  FK_INLINE Radial(const Stack<T>& stack, const Constants&) : Row<T, n>(stack) {}

  FK_INLINE void prepare() {
    FK_SHARED(RadialLayer<T>, table, kTableDepth);
    table_ = table;
    if (!has_table()) return;
    for (int k = threadIdx.x; k < this->stack.depth; k += kThreads) table[k] = numbers(k);
    __syncthreads();
  }

  FK_INLINE Layer layer(int k) {
    Layer layer;
    this->vector(layer.center, 0, k);
    layer.numbers = has_table() ? table_[k] : numbers(k);
    return layer;
  }

  FK_INLINE Point find(const Layer& layer, const T (&z)[n]) {
    T v[n];
    from_center(v, layer, z);
    return {length(v)};
  }

  FK_INLINE Point advance(int k, T (&z)[n]) {
    const Layer layer = this->layer(k);
    T v[n];
    from_center(v, layer, z);
    const T r = length(v);
    const auto growth = RadialGrowth<T>::at(r, layer.numbers);
    move(z, layer, v, growth.m);
    multiply(growth);
    return {r};
  }

  FK_INLINE void retreat(int k, T (&z)[n]) {
    const Layer layer = this->layer(k);
    T v[n];
    from_center(v, layer, z);
    const auto growth = RadialGrowth<T>::at(radial_radius(length(v), layer.numbers), layer.numbers);
    move(z, layer, v, T(1) / growth.m);
    multiply(growth);
  }

  FK_INLINE void settle() {
    m_.settle();
    q_.settle();
  }
  FK_INLINE T log_det() const { return (static_cast<T>(this->stack.features) - T(1)) * m_.value() + q_.value(); }

  FK_INLINE static void pack(const Point& point, T (&numbers)[kRecord]) { numbers[0] = point.r; }
  FK_INLINE Point unpack(const T (&numbers)[kRecord]) const { return {numbers[0]}; }

  // Takes g from the layer's output to its input; z, the input of an inverse stack's layer, forward to the next.
  template <class Sink>
  FK_INLINE void backward(int k, const Layer& layer, const Point& point, T (&z)[n], T (&g)[n], T grad_log_det,
                          Sink& sink) {
    T v[n];
    from_center(v, layer, z);
    RadialGradient<T> grad = radial_backward(point.r, layer.numbers, this->sum(dot(g, v)), grad_log_det,
                                             static_cast<T>(this->stack.features), this->stack.inverse);
    if (!this->exists) grad = {};
    if (this->stack.inverse) move(z, layer, v, RadialGrowth<T>::at(point.r, layer.numbers).m);
    T vectors[kVectors * n], numbers[kNumbers] = {grad.of_alpha, grad.of_p};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      vectors[j] = grad.shrink * g[j] - grad.outward * v[j];
      g[j] = grad.scale * g[j] + grad.outward * v[j];
    }
    if (!sink.wanted()) return;
    if (this->stack.per_example) numbers[1] *= math::sigmoid(this->number(2, k));
    sink.put(*this, k, vectors, numbers);
  }

 private:
  FK_INLINE bool has_table() const { return !this->stack.per_example && this->stack.depth <= kTableDepth; }

  FK_INLINE RadialLayer<T> numbers(int k) const { return RadialLayer<T>::make(this->number(1, k), this->number(2, k)); }

  FK_INLINE static void from_center(T (&v)[n], const Layer& layer, const T (&z)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] = z[j] - layer.center[j];
  }

  FK_INLINE T length(const T (&v)[n]) { return math::sqrt(this->sum(dot(v, v))); }

  FK_INLINE static void move(T (&z)[n], const Layer& layer, const T (&v)[n], T factor) {
#pragma unroll
    for (int j = 0; j < n; ++j) z[j] = layer.center[j] + factor * v[j];
  }

  FK_INLINE void multiply(const RadialGrowth<T>& growth) {
    m_.multiply(growth.m);
    q_.multiply(growth.q);
  }

  const RadialLayer<T>* table_;
  LogSum<T> m_, q_;
};

template <class T>
struct RadialFinish {
  using Number = T;

  FK_INLINE static void run(const FinishArguments<T>& a) {
    const uint32_t features = a.features;
    const int64_t k = blockIdx.x;
    sum_partials(a, features + 2, [&](uint32_t i, T sum) {
      if (i < features)
        store(a.grads[0] + k * features + i, sum);
      else if (i == features)
        store(a.grads[1] + k, sum);
      else
        store(a.grads[2] + k, sum * math::sigmoid(load(a.parameters[2] + k)));
    });
  }
};

}  // namespace flowkernels::cuda::stack
