#include "flow/radial.h"

#include "cpu/kernels.h"
#include "cpu/stack.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

// What is computed once per call where parameters are shared.
template <class T>
struct RadialShared {
  const Buffer<T> alpha, p;
  const Buffer<int64_t> end;  // of layers with a logarithm in common: m and q lie between 1 and p / alpha

  RadialShared(const StackPlan& plan, const void* const* parameters)
      : alpha(plan.per_example ? 0 : plan.depth),
        p(plan.per_example ? 0 : plan.depth),
        end(plan.per_example ? 0 : plan.depth) {
    if (plan.per_example) return;
    const Buffer<T> extreme(plan.depth);
    for (int64_t k = 0; k < plan.depth; ++k) {
      const auto layer =
          RadialLayer<T>::make(static_cast<const T*>(parameters[1])[k], static_cast<const T*>(parameters[2])[k]);
      alpha[k] = layer.alpha;
      p[k] = layer.p;
      extreme[k] = p[k] / alpha[k];
    }
    divide_layers(static_cast<const T*>(extreme), plan.depth, static_cast<int64_t*>(end));
  }
};

template <int features_, class T>
struct RadialRun {
  static constexpr int features = features_, factors = 2;
  const T *center, *alpha, *p;

  FK_INLINE void pass(int64_t k, T* point, T* product) const {
    T v[features], square = T(0);
#pragma GCC unroll 8
    for (int d = 0; d < features; ++d) {
      v[d] = point[d] - center[k * features + d];
      square += v[d] * v[d];
    }
    const RadialGrowth<T> growth = RadialGrowth<T>::at(math::sqrt(square), RadialLayer<T>{alpha[k], p[k]});
#pragma GCC unroll 8
    for (int d = 0; d < features; ++d) point[d] = center[k * features + d] + growth.m * v[d];
    product[0] *= growth.q;
    product[1] *= growth.m;
  }
};

template <bool per_example, int rows_, class T>
class RadialLayers {
 public:
  using Number = T;
  using Shared = RadialShared<T>;
  static constexpr int rows = rows_;
  static constexpr int kSaved = 3;  // r, m, q

  static int64_t sums_per_layer(int64_t features) { return features + 2; }  // z0, alpha, p

  RadialLayers(const StackPlan& plan, const RadialOptions&, const Shared& shared, const void* const* parameters,
               void* const* grads)
      : plan_(plan), shared_(shared), own_(per_example ? 2 * plan.features * rows : 0) {
    for (int i = 0; i < kStackParameters; ++i) {
      parameters_[i] = static_cast<const T*>(parameters[i]);
      grads_[i] = grads == nullptr ? nullptr : static_cast<T*>(grads[i]);
    }
  }

  void select(int64_t k, TileRows which) {
    layer_ = k;
    which_ = which;
    if constexpr (per_example) {
      read_parameters();
    } else {
      center_ = parameters_[0] + k * plan_.features;
      for (int r = 0; r < rows; ++r) alpha_[r] = shared_.alpha[k], p_[r] = shared_.p[k];
    }
  }

  void points(const T* z, T* saved) const {
    distance(z, saved);
    evaluate(saved);
  }

  void solve(const T* y, T* saved) const {
    distance(y, saved);
#pragma omp simd
    for (int r = 0; r < rows; ++r) saved[r] = radial_radius(saved[r], layer(r));
    evaluate(saved);
  }

  void advance(const T* z, const T* saved, T* next) const { scale(z, saved + rows, next); }

  void retreat(const T* y, const T* saved, T* next) const {
    alignas(64) T factor[rows];
#pragma omp simd
    for (int r = 0; r < rows; ++r) factor[r] = T(1) / saved[rows + r];
    scale(y, factor, next);
  }

  bool sweep(T* z) {
    if constexpr (per_example || sizeof(T) == 8) return false;
    return with_few(plan_.features, [&](auto features) {
      const RadialRun<features.value, T> run = {parameters_[0], shared_.alpha, shared_.p};
      run_tile(run, plan_.depth, static_cast<const int64_t*>(shared_.end), z, factors_);
    });
  }

  void clear() {
    for (auto& factors : factors_) factors.clear();
  }

  void determinant(const T* saved) {
    factors_[0].multiply(saved + 2 * rows);
    factors_[1].multiply(saved + rows);
  }

  const T* log_det() {
    const T *outward = factors_[0].value(), *across = factors_[1].value();
    const T others = static_cast<T>(plan_.features - 1);
    for (int r = 0; r < rows; ++r) log_det_[r] = others == T(0) ? outward[r] : others * across[r] + outward[r];
    return log_det_;
  }

  void backward(const T* z, const T*, const T* saved, T* g, const T* grad_log_det, double* sums) {
    alignas(64) T gain[rows], outward[rows] = {}, shrink[rows], of_alpha[rows], of_p[rows];
    sum_features<T, rows>(plan_.features, outward, [&](int64_t d, int r) {
      return vector_at(g + d * rows + r) * (vector_at(z + d * rows + r) - center(d, r));
    });
    const T features = static_cast<T>(plan_.features);
    with_bool(plan_.inverse, [&](auto inverse) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) {
        const RadialGradient<T> grad =
            radial_backward(saved[r], layer(r), outward[r], grad_log_det[r], features, inverse.value);
        gain[r] = grad.scale;
        outward[r] = grad.outward;
        shrink[r] = grad.shrink;
        of_alpha[r] = grad.of_alpha;
        of_p[r] = grad.of_p;
      }
    });
    if constexpr (per_example) {
      if (grads_[2] != nullptr) write_gradients(z, g, outward, shrink, of_alpha, of_p);
    } else if (sums != nullptr) {
      add_gradients(z, g, outward, shrink, of_alpha, of_p, sums);
    }
    for (int64_t d = 0; d < plan_.features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) {
        const int64_t i = d * rows + r;
        g[i] = gain[r] * g[i] + outward[r] * (z[i] - number(d, r));
      }
    }
  }

  static void finish(const StackPlan& plan, const StackBackwardCall& call, const double* partial, int64_t chunks) {
    const int64_t features = plan.features, count = sums_per_layer(features);
    const Buffer<double> total(count);
    for (int64_t k = 0; k < plan.depth; ++k) {
      add_chunks(partial + k * count, chunks, plan.depth * count, count, total);
      T* grad_center = static_cast<T*>(call.grad_parameters[0]) + k * features;
      for (int64_t d = 0; d < features; ++d) grad_center[d] = static_cast<T>(total[d]);
      const double beta = static_cast<const T*>(call.parameters[2])[k];
      static_cast<T*>(call.grad_parameters[1])[k] = static_cast<T>(total[features]);
      static_cast<T*>(call.grad_parameters[2])[k] = static_cast<T>(total[features + 1] * math::sigmoid(beta));
    }
  }

 private:
  FK_INLINE T number(int64_t d, int r) const { return per_example ? center_[d * rows + r] : center_[d]; }

  FK_INLINE Vector<T> center(int64_t d, int r) const {
    if constexpr (per_example) return vector_at(center_ + d * rows + r);
    return Vector<T>{} + center_[d];
  }

  FK_INLINE RadialLayer<T> layer(int r) const { return {alpha_[r], p_[r]}; }

  void distance(const T* z, T* r) const {
    for (int i = 0; i < rows; ++i) r[i] = T(0);
    sum_features<T, rows>(plan_.features, r, [&](int64_t d, int first) {
      const Vector<T> v = vector_at(z + d * rows + first) - center(d, first);
      return v * v;
    });
#pragma omp simd
    for (int i = 0; i < rows; ++i) r[i] = math::sqrt(r[i]);
  }

  void evaluate(T* saved) const {
#pragma omp simd
    for (int r = 0; r < rows; ++r) {
      const RadialGrowth<T> growth = RadialGrowth<T>::at(saved[r], layer(r));
      saved[rows + r] = growth.m;
      saved[2 * rows + r] = growth.q;
    }
  }

  void scale(const T* z, const T* factor, T* next) const {
    for (int64_t d = 0; d < plan_.features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) {
        const T origin = number(d, r);
        next[d * rows + r] = origin + factor[r] * (z[d * rows + r] - origin);
      }
    }
  }

  void read_parameters() {
    const int64_t features = plan_.features;
    const int64_t vectors[2] = {plan_.parameter_strides[0], 1};
    const int64_t numbers[2] = {plan_.parameter_strides[1], 1}, others[2] = {plan_.parameter_strides[2], 1};
    load_columns<rows>(parameters_[0] + layer_ * features, vectors, which_, features, static_cast<T*>(own_));
    load_columns<rows>(parameters_[1] + layer_, numbers, which_, 1, alpha_);
    load_columns<rows>(parameters_[2] + layer_, others, which_, 1, beta_);
#pragma omp simd
    for (int r = 0; r < rows; ++r) {
      const RadialLayer<T> made = RadialLayer<T>::make(alpha_[r], beta_[r]);
      alpha_[r] = made.alpha;
      p_[r] = made.p;
    }
    center_ = own_;
  }

  // Shared parameters: sums over the rows.
  void add_gradients(const T* z, const T* g, const T* outward, const T* shrink, const T* of_alpha, const T* of_p,
                     double* sums) const {
    const int64_t features = plan_.features;
    sum_over_rows<T, rows>(features, sums, [&](int64_t d, int r) {
      const int64_t i = d * rows + r;
      return vector_at(shrink + r) * vector_at(g + i) - vector_at(outward + r) * (vector_at(z + i) - center(d, r));
    });
    sums[features] += sum_lanes<T, rows>(of_alpha);
    sums[features + 1] += sum_lanes<T, rows>(of_p);
  }

  // Parameters of each row: gradients of their own.
  void write_gradients(const T* z, const T* g, const T* outward, const T* shrink, const T* of_alpha, const T* of_p) {
    const int64_t features = plan_.features, layers = plan_.depth;
    T* const grad_center = own_ + features * rows;
    alignas(64) T of_beta[rows];
    for (int64_t d = 0; d < features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) {
        const int64_t i = d * rows + r;
        grad_center[i] = shrink[r] * g[i] - outward[r] * (z[i] - number(d, r));
      }
    }
#pragma omp simd
    for (int r = 0; r < rows; ++r) of_beta[r] = of_p[r] * math::sigmoid(beta_[r]);
    store_columns<rows>(grad_center, which_, features, layers * features, grads_[0] + layer_ * features);
    store_columns<rows>(of_alpha, which_, 1, layers, grads_[1] + layer_);
    store_columns<rows>(of_beta, which_, 1, layers, grads_[2] + layer_);
  }

  const StackPlan& plan_;
  const Shared& shared_;
  const Buffer<T> own_;  // of each row: the centre and its gradient
  const T* parameters_[kStackParameters];
  T* grads_[kStackParameters];
  const T* center_ = nullptr;
  int64_t layer_ = 0;
  TileRows which_{0, 0};
  LogFactors<T, rows> factors_[2];  // q, along the ray; m, in the directions across it
  alignas(64) T alpha_[rows];
  alignas(64) T p_[rows];
  alignas(64) T beta_[rows];
  alignas(64) T log_det_[rows];
};

}  // namespace

void radial_stack_forward(const StackForwardPlan<RadialOptions>& plan, const StackForwardCall& call) {
  with_layers<RadialLayers>(plan.common,
                            [&](auto* layers) { forward_tiles<std::remove_pointer_t<decltype(layers)>>(plan, call); });
}

void radial_stack_backward(const StackBackwardPlan<RadialOptions>& plan, const StackBackwardCall& call) {
  with_layers<RadialLayers>(plan.common,
                            [&](auto* layers) { backward_tiles<std::remove_pointer_t<decltype(layers)>>(plan, call); });
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
