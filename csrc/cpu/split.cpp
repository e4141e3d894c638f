// The log-density of split on the CPU. The inputs are what is scored, means and log-deviations.
#include "flow/split.h"

#include "cpu/elementwise.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

template <bool has_std>
struct With {
  template <class T>
  struct Forward {
    explicit Forward(const SplitOptions&) {}

    void operator()(Run<T> run) const {
      const T *value = run.input[0], *mean = run.input[1], *log_std = run.input[2];
      T* terms = run.terms;
#pragma omp simd
      for (int64_t i = 0; i < run.length; ++i) terms[i] = log_normal<has_std>(value[i], mean[i], log_std[i]);
    }
  };

  template <class T>
  struct Backward {
    explicit Backward(const SplitOptions&) {}

    void operator()(Run<T> run) const {
      const T *value = run.input[0], *mean = run.input[1], *log_std = run.input[2], *grad = run.per_row;
      T *of_value = run.output[0], *of_mean = run.output[1], *of_log_std = run.output[2];
#pragma omp simd
      for (int64_t i = 0; i < run.length; ++i) {
        const LogNormalGradient<T> found = log_normal_backward<has_std>(grad[i], value[i], mean[i], log_std[i]);
        of_value[i] = found.value;
        of_mean[i] = found.mean;
        of_log_std[i] = found.log_std;
      }
    }
  };
};

}  // namespace

void split_forward(const ElementwisePlan<SplitOptions>& plan, const ElementwiseCall& call) {
  if (call.input[2]) return run_in_its_type<With<true>::Forward>(plan, call);
  run_in_its_type<With<false>::Forward>(plan, call);
}

void split_backward(const ElementwisePlan<SplitOptions>& plan, const ElementwiseCall& call) {
  if (call.input[2]) return run_in_its_type<With<true>::Backward>(plan, call);
  run_in_its_type<With<false>::Backward>(plan, call);
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
