#include "bindings/affine_coupling.h"
#include "cpu/kernels.h"

namespace {

using namespace flowkernels;

struct Launchers {
  static size_t forward_workspace(const AffineForwardPlan&) { return 0; }
  static size_t backward_workspace(const AffineBackwardPlan&) { return 0; }
  static void forward(const AffineForwardPlan& plan, const AffineForwardCall& call, void*, int, void*) {
    cpu::kernels().affine_coupling_forward(plan, call);
  }
  static void backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void*, int, void*) {
    cpu::kernels().affine_coupling_backward(plan, call);
  }
};

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Kernels for CPU tensors, in the best instruction set that this processor has.";
  module.attr("isa") = cpu::kernels().isa;
  module.attr("isas") = cpu::built_isas();
  module.attr("compiler") = FLOWKERNELS_COMPILER;
  bind_affine_coupling<Launchers>(module);
}
