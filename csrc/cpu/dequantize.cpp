// Dequantization on the CPU. The inputs are noise and x, then z and its gradient, then z.
#include "flow/dequantize.h"

#include "cpu/elementwise.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

template <class T>
struct Forward {
  DequantizeConstants<T> constants;

  explicit Forward(const DequantizeOptions& options) : constants(options) {}

  void operator()(Run<T> run) const {
    const DequantizeConstants<T> c = constants;
    const T *noise = run.input[0], *x = run.input[1];
    T *z = run.output[0], *terms = run.terms;
#pragma omp simd
    for (int64_t i = 0; i < run.length; ++i) {
      const Dequantized<T> found = dequantize(x[i], noise[i], c);
      z[i] = found.z;
      terms[i] = found.log_slope;
    }
  }
};

template <class T>
struct Backward {
  DequantizeConstants<T> constants;

  explicit Backward(const DequantizeOptions& options) : constants(options) {}

  void operator()(Run<T> run) const {
    const DequantizeConstants<T> c = constants;
    const T *z = run.input[0], *grad_z = run.input[1], *grad_log_det = run.per_row;
    T* grad_noise = run.output[0];
#pragma omp simd
    for (int64_t i = 0; i < run.length; ++i) grad_noise[i] = dequantize_backward(grad_z[i], grad_log_det[i], z[i], c);
  }
};

template <class T>
struct Quantize {
  DequantizeConstants<T> constants;

  explicit Quantize(const DequantizeOptions& options) : constants(options) {}

  void operator()(Run<T> run) const {
    const DequantizeConstants<T> c = constants;
    const T* z = run.input[0];
    T* x = run.output[0];
#pragma omp simd
    for (int64_t i = 0; i < run.length; ++i) x[i] = quantize(z[i], c);
  }
};

}  // namespace

void dequantize_forward(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall& call) {
  run_in_its_type<Forward>(plan, call);
}

void dequantize_backward(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall& call) {
  run_in_its_type<Backward>(plan, call);
}

void quantize(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall& call) {
  run_in_its_type<Quantize>(plan, call);
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
