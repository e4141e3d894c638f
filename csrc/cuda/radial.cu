#include "cuda/radial.cuh"
#include "cuda/stack_launch.cuh"

namespace flowkernels::cuda {
namespace stack {

template <>
struct Family<RadialOptions> {
  template <class T, int n>
  using Op = Radial<T, n>;
  template <class T>
  using Finish = RadialFinish<T>;

  static constexpr const char *kForward = "radial_forward", *kBackward = "radial_backward", *kFinish = "radial_finish";

  template <class T>
  static RadialConstants<T> constants(const RadialOptions&) {
    return {};
  }
};

}  // namespace stack

template struct StackLaunchers<RadialOptions>;

}  // namespace flowkernels::cuda
