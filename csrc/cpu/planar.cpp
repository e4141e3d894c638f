#include "flow/planar.h"

#include "cpu/kernels.h"
#include "cpu/stack.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

// What is computed once per call where parameters are shared.
template <class T>
struct PlanarShared {
  const Buffer<T> corrected, p;
  const Buffer<int64_t> end;  // of layers with a logarithm in common: a determinant lies between 1 and p

  PlanarShared(const StackPlan& plan, const void* const* parameters)
      : corrected(plan.per_example ? 0 : plan.depth * plan.features),
        p(plan.per_example ? 0 : plan.depth),
        end(plan.per_example ? 0 : plan.depth) {
    if (plan.per_example) return;
    for (int64_t k = 0; k < plan.depth; ++k) {
      const T* u = static_cast<const T*>(parameters[0]) + k * plan.features;
      const T* w = static_cast<const T*>(parameters[1]) + k * plan.features;
      double s = 0, square = 0;
#pragma omp simd reduction(+ : s, square)
      for (int64_t d = 0; d < plan.features; ++d) {
        s += static_cast<double>(u[d]) * w[d];
        square += static_cast<double>(w[d]) * w[d];
      }
      p[k] = planar_constraint(static_cast<T>(s), static_cast<T>(square)).p;
      const double factor = planar_constraint(s, square).factor;  // u and factor w may nearly cancel
      for (int64_t d = 0; d < plan.features; ++d)
        corrected[k * plan.features + d] = static_cast<T>(u[d] + factor * w[d]);
    }
    divide_layers(static_cast<const T*>(p), plan.depth, static_cast<int64_t*>(end));
  }
};

template <int features_, Activation activation, class T>
struct PlanarRun {
  static constexpr int features = features_, factors = 1;
  const T *corrected, *w, *b, *p;
  T negative_slope;

  FK_INLINE void pass(int64_t k, T* point, T* product) const {
    T a = b[k];
#pragma GCC unroll 8
    for (int d = 0; d < features; ++d) a += w[k * features + d] * point[d];
    const PlanarPoint<T> f = planar_point<activation>(a, negative_slope);
#pragma GCC unroll 8
    for (int d = 0; d < features; ++d) point[d] += corrected[k * features + d] * f.h;
    product[0] *= planar_det(f, p[k]);
  }
};

// One number per feature where parameters are shared, else one per feature and row.
template <bool per_example, int rows_, class T>
class PlanarLayers {
 public:
  using Number = T;
  using Shared = PlanarShared<T>;
  static constexpr int rows = rows_;
  static constexpr int kSaved = 3;  // h, its slope, and 1 - slope

  static int64_t sums_per_layer(int64_t features) { return 2 * features + 2; }  // u', w, p, b

  PlanarLayers(const StackPlan& plan, const PlanarOptions& options, const Shared& shared, const void* const* parameters,
               void* const* grads)
      : plan_(plan),
        activation_(options.activation),
        negative_slope_(static_cast<T>(options.negative_slope)),
        shared_(shared),
        own_(per_example ? 5 * plan.features * rows : 0) {
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
      corrected_ = shared_.corrected + k * plan_.features;
      w_ = parameters_[1] + k * plan_.features;
      for (int r = 0; r < rows; ++r) p_[r] = shared_.p[k], b_[r] = parameters_[2][k];
    }
  }

  void points(const T* z, T* saved) {
    project(z, saved);
    evaluate(saved, saved);
  }

  void solve(const T* y, T* saved) {
    alignas(64) T c[rows];
    project(y, c);
    if (activation_ == Activation::tanh) {
      newton(c);
    } else {
      for (int r = 0; r < rows; ++r) c[r] = planar_solve_leaky_relu(c[r], p_[r], negative_slope_);
    }
    evaluate(c, saved);
  }

  void advance(const T* z, const T* saved, T* next) const {
    for (int64_t d = 0; d < plan_.features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) next[d * rows + r] = z[d * rows + r] + number(corrected_, d, r) * saved[r];
    }
  }

  void retreat(const T* y, const T* saved, T* next) const {
    for (int64_t d = 0; d < plan_.features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) next[d * rows + r] = y[d * rows + r] - number(corrected_, d, r) * saved[r];
    }
  }

  bool sweep(T* z) {
    if constexpr (per_example || sizeof(T) == 8) return false;
    return with_few(plan_.features, [&](auto features) {
      with_activation(activation_, [&](auto activation) {
        using Run = PlanarRun<features.value, activation.value, T>;
        const Run run = {shared_.corrected, parameters_[1], parameters_[2], shared_.p, negative_slope_};
        run_tile(run, plan_.depth, static_cast<const int64_t*>(shared_.end), z, &factors_);
      });
    });
  }

  void clear() { factors_.clear(); }

  void determinant(const T* saved) {
    alignas(64) T det[rows];
#pragma omp simd
    for (int r = 0; r < rows; ++r) det[r] = planar_det(point(saved, r), p_[r]);
    factors_.multiply(det);
  }

  const T* log_det() { return factors_.value(); }

  void backward(const T* z, const T* next, const T* saved, T* g, const T* grad_log_det, double* sums) {
    alignas(64) T along[rows] = {}, of_u[rows], of_log_p[rows];
    sum_features<T, rows>(plan_.features, along,
                          [&](int64_t d, int r) { return vector(corrected_, d, r) * vector_at(g + d * rows + r); });
    with_activation(activation_, [&](auto activation) {
      with_bool(plan_.inverse, [&](auto inverse) {
#pragma omp simd
        for (int r = 0; r < rows; ++r) {
          const PlanarGradient<T> grad =
              planar_backward<activation.value>(point(saved, r), p_[r], along[r], grad_log_det[r], inverse.value);
          along[r] = grad.along;
          of_u[r] = grad.of_u;
          of_log_p[r] = grad.of_log_p;
        }
      });
    });
    const T* seen = plan_.inverse ? next : z;
    if constexpr (per_example) {
      if (grads_[2] != nullptr) write_gradients(seen, g, along, of_u, of_log_p);
    } else if (sums != nullptr) {
      add_gradients(seen, g, along, of_u, of_log_p, sums);
    }
    for (int64_t d = 0; d < plan_.features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) g[d * rows + r] += along[r] * number(w_, d, r);
    }
  }

  static void finish(const StackPlan& plan, const StackBackwardCall& call, const double* partial, int64_t chunks) {
    const int64_t features = plan.features, count = sums_per_layer(features);
#pragma omp parallel if (plan.depth * count * chunks >= kThreadedWork)
    {
      const Buffer<double> total(count);
#pragma omp for schedule(static) nowait
      for (int64_t k = 0; k < plan.depth; ++k) {
        add_chunks(partial + k * count, chunks, plan.depth * count, count, total);
        finish_layer(k, features, call, total);
      }
    }
  }

 private:
  FK_INLINE T number(const T* values, int64_t d, int r) const { return per_example ? values[d * rows + r] : values[d]; }

  FK_INLINE Vector<T> vector(const T* values, int64_t d, int r) const {
    if constexpr (per_example) return vector_at(values + d * rows + r);
    return Vector<T>{} + values[d];
  }

  static FK_INLINE PlanarPoint<T> point(const T* saved, int r) {
    return {saved[r], saved[rows + r], saved[2 * rows + r]};
  }

  // a = w'z + b.
  void project(const T* z, T* a) const {
    for (int r = 0; r < rows; ++r) a[r] = b_[r];
    sum_features<T, rows>(plan_.features, a,
                          [&](int64_t d, int r) { return vector(w_, d, r) * vector_at(z + d * rows + r); });
  }

  void evaluate(const T* a, T* saved) const {
    with_activation(activation_, [&](auto activation) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) {
        const PlanarPoint<T> f = planar_point<activation.value>(a[r], negative_slope_);
        saved[r] = f.h;
        saved[rows + r] = f.slope;
        saved[2 * rows + r] = f.rest;
      }
    });
  }

  // c becomes the root.
  void newton(T* c) const {
    alignas(64) T magnitude[rows], a[rows];
#pragma omp simd
    for (int r = 0; r < rows; ++r) {
      magnitude[r] = math::abs(c[r]);
      a[r] = PlanarSolver<T>::start(magnitude[r], p_[r]);
    }
    int moved = 1;
    for (int step = 0; step < PlanarSolver<T>::kSteps && moved; ++step) {
      moved = 0;
#pragma omp simd reduction(| : moved)
      for (int r = 0; r < rows; ++r) {
        const T next = PlanarSolver<T>::step(a[r], magnitude[r], p_[r]);
        moved |= next < a[r] || a[r] < next ? 1 : 0;
        a[r] = next;
      }
    }
#pragma omp simd
    for (int r = 0; r < rows; ++r) c[r] = c[r] < T(0) ? -a[r] : a[r];
  }

  T* own(int which) const { return own_ + which * plan_.features * rows; }

  void read_parameters() {
    T *const u = own(0), *const w = own(1), *const corrected = own(2);
    const int64_t features = plan_.features;
    const int64_t vectors[2] = {plan_.parameter_strides[0], 1}, other[2] = {plan_.parameter_strides[1], 1};
    const int64_t numbers[2] = {plan_.parameter_strides[2], 1};
    load_columns<rows>(parameters_[0] + layer_ * features, vectors, which_, features, u);
    load_columns<rows>(parameters_[1] + layer_ * features, other, which_, features, w);
    load_columns<rows>(parameters_[2] + layer_, numbers, which_, 1, b_);
    for (int r = 0; r < rows; ++r) s_[r] = square_[r] = T(0);
    sum_features<T, rows>(features, s_, [&](int64_t d, int r) { return vector(u, d, r) * vector(w, d, r); });
    sum_features<T, rows>(features, square_, [&](int64_t d, int r) { return vector(w, d, r) * vector(w, d, r); });
    alignas(64) T factor[rows];
#pragma omp simd
    for (int r = 0; r < rows; ++r) {
      const PlanarConstraint<T> constraint = planar_constraint(s_[r], square_[r]);
      factor[r] = constraint.factor;
      p_[r] = constraint.p;
    }
    correct(u, w, factor, corrected);
    alignas(64) T along[rows] = {};
    sum_features<T, rows>(features, along, [&](int64_t d, int r) { return vector(corrected, d, r) * vector(w, d, r); });
#pragma omp simd
    for (int r = 0; r < rows; ++r) factor[r] = planar_constraint_rest(along[r], square_[r], p_[r]);
    correct(corrected, w, factor, corrected);
    corrected_ = corrected;
    w_ = w;
  }

  void correct(const T* u, const T* w, const T* factor, T* corrected) const {
    for (int64_t d = 0; d < plan_.features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) corrected[d * rows + r] = u[d * rows + r] + factor[r] * w[d * rows + r];
    }
  }

  // Shared parameters: sums over the rows.
  void add_gradients(const T* seen, const T* g, const T* along, const T* of_u, const T* of_log_p, double* sums) const {
    const int64_t features = plan_.features;
    sum_over_rows<T, rows>(features, sums,
                           [&](int64_t d, int r) { return vector_at(of_u + r) * vector_at(g + d * rows + r); });
    sum_over_rows<T, rows>(features, sums + features,
                           [&](int64_t d, int r) { return vector_at(along + r) * vector_at(seen + d * rows + r); });
    sums[2 * features] += sum_lanes<T, rows>(of_log_p);
    sums[2 * features + 1] += sum_lanes<T, rows>(along);
  }

  // Parameters of each row: gradients of their own.
  void write_gradients(const T* seen, const T* g, const T* along, const T* of_u, const T* of_log_p) {
    const int64_t features = plan_.features, layers = plan_.depth;
    const T *const u = own(0), *const w = own(1);
    T *const grad_u = own(3), *const grad_w = own(4);
    alignas(64) T projection[rows] = {}, factor[rows], shift[rows], of_s[rows];
    sum_features<T, rows>(features, projection,
                          [&](int64_t d, int r) { return vector(w, d, r) * vector_at(g + d * rows + r); });
#pragma omp simd
    for (int r = 0; r < rows; ++r) {
      const auto back = planar_constraint_backward(s_[r], square_[r], projection[r] * of_u[r], of_log_p[r]);
      factor[r] = back.factor;
      shift[r] = T(2) * back.along;
      of_s[r] = back.of_s;
    }
    for (int64_t d = 0; d < features; ++d) {
#pragma omp simd
      for (int r = 0; r < rows; ++r) {
        const int64_t i = d * rows + r;
        const T of_corrected = of_u[r] * g[i];
        grad_u[i] = of_corrected + of_s[r] * w[i];
        grad_w[i] = factor[r] * (of_corrected - shift[r] * w[i]) + of_s[r] * u[i] + along[r] * seen[i];
      }
    }
    store_columns<rows>(grad_u, which_, features, layers * features, grads_[0] + layer_ * features);
    store_columns<rows>(grad_w, which_, features, layers * features, grads_[1] + layer_ * features);
    store_columns<rows>(along, which_, 1, layers, grads_[2] + layer_);
  }

  static void finish_layer(int64_t k, int64_t features, const StackBackwardCall& call, const double* total) {
    const T* u = static_cast<const T*>(call.parameters[0]) + k * features;
    const T* w = static_cast<const T*>(call.parameters[1]) + k * features;
    T* grad_u = static_cast<T*>(call.grad_parameters[0]) + k * features;
    T* grad_w = static_cast<T*>(call.grad_parameters[1]) + k * features;
    double s = 0, square = 0, projection = 0;
#pragma omp simd reduction(+ : s, square, projection)
    for (int64_t d = 0; d < features; ++d) {
      s += static_cast<double>(u[d]) * w[d];
      square += static_cast<double>(w[d]) * w[d];
      projection += total[d] * w[d];
    }
    const auto back = planar_constraint_backward(s, square, projection, total[2 * features]);
    for (int64_t d = 0; d < features; ++d) {
      grad_u[d] = static_cast<T>(total[d] + back.of_s * w[d]);
      grad_w[d] =
          static_cast<T>(back.factor * (total[d] - 2 * back.along * w[d]) + back.of_s * u[d] + total[features + d]);
    }
    static_cast<T*>(call.grad_parameters[2])[k] = static_cast<T>(total[2 * features + 1]);
  }

  const StackPlan& plan_;
  const Activation activation_;
  const T negative_slope_;
  const Shared& shared_;
  const Buffer<T> own_;  // of each row: u, w, u', and the gradients of u and w
  const T* parameters_[kStackParameters];
  T* grads_[kStackParameters];
  const T *corrected_ = nullptr, *w_ = nullptr;
  int64_t layer_ = 0;
  TileRows which_{0, 0};
  LogFactors<T, rows> factors_;
  alignas(64) T p_[rows];
  alignas(64) T b_[rows];
  alignas(64) T s_[rows];
  alignas(64) T square_[rows];
};

}  // namespace

void planar_stack_forward(const StackForwardPlan<PlanarOptions>& plan, const StackForwardCall& call) {
  with_layers<PlanarLayers>(plan.common,
                            [&](auto* layers) { forward_tiles<std::remove_pointer_t<decltype(layers)>>(plan, call); });
}

void planar_stack_backward(const StackBackwardPlan<PlanarOptions>& plan, const StackBackwardCall& call) {
  with_layers<PlanarLayers>(plan.common,
                            [&](auto* layers) { backward_tiles<std::remove_pointer_t<decltype(layers)>>(plan, call); });
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
