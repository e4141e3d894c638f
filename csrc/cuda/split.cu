// The log-density of split. The inputs are what is scored, means and log-deviations.
#include "cuda/elementwise.cuh"
#include "flow/split.h"

namespace flowkernels::cuda {
namespace elementwise {

// What both directions share: deviations that are absent are not exponentiated.
struct Split {
  static constexpr int kInputs = 3;
  template <class X, class S>
  using Output = X;

  struct Deviations {
    bool given;

    Deviations(const SplitOptions&, const ElementwiseCall& call) : given(call.input[2] != nullptr) {}
  };

  // Without means and deviations their type is x's, which allows the widest accesses.
  template <class F>
  static void with_storage(const ElementwisePlan<SplitOptions>& plan, const ElementwiseCall& call, F&& f) {
    const int present = call.input[1] ? 1 : call.input[2] ? 2 : 0;
    with_types(plan.input[0].dtype, plan.input[present].dtype, f);
  }
};

}  // namespace elementwise

struct SplitForward : elementwise::Split {
  static constexpr const char* kName = "split_forward";
  static constexpr int kOutputs = 0;
  static constexpr bool kSums = true;

  template <class T>
  struct Formula : Deviations {
    using Deviations::Deviations;

    FK_INLINE void operator()(elementwise::Element<T>& e) const {
      e.term = given ? log_normal<true>(e.input[0], e.input[1], e.input[2])
                     : log_normal<false>(e.input[0], e.input[1], e.input[2]);
    }
  };
};

struct SplitBackward : elementwise::Split {
  static constexpr const char* kName = "split_backward";
  static constexpr int kOutputs = 3;
  static constexpr bool kSums = false;

  template <class T>
  struct Formula : Deviations {
    using Deviations::Deviations;

    FK_INLINE void operator()(elementwise::Element<T>& e) const {
      const LogNormalGradient<T> found =
          given ? log_normal_backward<true>(e.per_row, e.input[0], e.input[1], e.input[2])
                : log_normal_backward<false>(e.per_row, e.input[0], e.input[1], e.input[2]);
      e.output[0] = found.value;
      e.output[1] = found.mean;
      e.output[2] = found.log_std;
    }
  };
};

template struct ElementwiseLauncher<SplitForward, SplitOptions>;
template struct ElementwiseLauncher<SplitBackward, SplitOptions>;

}  // namespace flowkernels::cuda
