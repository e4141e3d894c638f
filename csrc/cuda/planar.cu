#include "cuda/planar.cuh"
#include "cuda/stack_launch.cuh"

namespace flowkernels::cuda {
namespace stack {

template <>
struct Family<PlanarOptions> {
  template <class T, int n>
  using Op = Planar<T, n>;
  template <class T>
  using Finish = PlanarFinish<T>;

  static constexpr const char *kTable = "planar_table", *kForward = "planar_forward", *kBackward = "planar_backward",
                              *kFinish = "planar_finish";

  template <class T>
  static PlanarConstants<T> constants(const PlanarOptions& options) {
    return {options.activation, static_cast<T>(options.negative_slope)};
  }
};

}  // namespace stack

template struct StackLaunchers<PlanarOptions>;

}  // namespace flowkernels::cuda
