#include "bindings/actnorm.h"
#include "bindings/affine_coupling.h"
#include "bindings/elementwise.h"
#include "bindings/perceptron.h"
#include "bindings/rational_quadratic_spline.h"
#include "bindings/squeeze.h"
#include "bindings/stack.h"
#include "cpu/kernels.h"

namespace {

using namespace flowkernels;

struct AffineLaunchers {
  static size_t forward_workspace(const AffineForwardPlan&) { return 0; }
  static size_t backward_workspace(const AffineBackwardPlan&) { return 0; }
  static void forward(const AffineForwardPlan& plan, const AffineForwardCall& call, void*, int, void*) {
    cpu::kernels().affine_coupling_forward(plan, call);
  }
  static void backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void*, int, void*) {
    cpu::kernels().affine_coupling_backward(plan, call);
  }
};

// A kernel of the table for each direction.
template <class Options,
          void (*cpu::Kernels::*forward_kernel)(const StackForwardPlan<Options>&, const StackForwardCall&),
          void (*cpu::Kernels::*backward_kernel)(const StackBackwardPlan<Options>&, const StackBackwardCall&)>
struct StackLaunchers {
  static size_t forward_workspace(const StackForwardPlan<Options>&) { return 0; }
  static size_t backward_workspace(const StackBackwardPlan<Options>&) { return 0; }
  static void forward(const StackForwardPlan<Options>& plan, const StackForwardCall& call, void*, int, void*) {
    (cpu::kernels().*forward_kernel)(plan, call);
  }
  static void backward(const StackBackwardPlan<Options>& plan, const StackBackwardCall& call, void*, int, void*) {
    (cpu::kernels().*backward_kernel)(plan, call);
  }
};

template <class Options, void (*cpu::Kernels::*kernel)(const ElementwisePlan<Options>&, const ElementwiseCall&)>
struct ElementwiseLauncher {
  static size_t workspace(const ElementwisePlan<Options>&) { return 0; }
  static void launch(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, void*, int, void*) {
    (cpu::kernels().*kernel)(plan, call);
  }
};

struct ElementwiseLaunchers {
  using DequantizeForward = ElementwiseLauncher<DequantizeOptions, &cpu::Kernels::dequantize_forward>;
  using DequantizeBackward = ElementwiseLauncher<DequantizeOptions, &cpu::Kernels::dequantize_backward>;
  using Quantize = ElementwiseLauncher<DequantizeOptions, &cpu::Kernels::quantize>;
  using SplitForward = ElementwiseLauncher<SplitOptions, &cpu::Kernels::split_forward>;
  using SplitBackward = ElementwiseLauncher<SplitOptions, &cpu::Kernels::split_backward>;
};

struct SplineLaunchers {
  static size_t forward_workspace(const SplineForwardPlan&) { return 0; }
  static size_t backward_workspace(const SplineBackwardPlan&) { return 0; }
  static void forward(const SplineForwardPlan& plan, const SplineForwardCall& call, void*, int, void*) {
    cpu::kernels().rational_quadratic_spline_forward(plan, call);
  }
  static void backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call, void*, int, void*) {
    cpu::kernels().rational_quadratic_spline_backward(plan, call);
  }
};

struct PerceptronLaunchers {
  static void forward(const Perceptron& net, const PerceptronForwardCall& call) {
    cpu::kernels().perceptron_forward(net, call);
  }
  static void backward(const Perceptron& net, const PerceptronBackwardCall& call) {
    cpu::kernels().perceptron_backward(net, call);
  }
};

struct ActnormLaunchers {
  static void forward(const Actnorm& plan, const ActnormForwardCall& call) {
    cpu::kernels().actnorm_forward(plan, call);
  }
  static void backward(const Actnorm& plan, const ActnormBackwardCall& call) {
    cpu::kernels().actnorm_backward(plan, call);
  }
};

struct SqueezeLauncher {
  static void run(const Squeeze& plan, const SqueezeCall& call) { cpu::kernels().squeeze(plan, call); }
};

using Planar = StackLaunchers<PlanarOptions, &cpu::Kernels::planar_forward, &cpu::Kernels::planar_backward>;
using Radial = StackLaunchers<RadialOptions, &cpu::Kernels::radial_forward, &cpu::Kernels::radial_backward>;

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "Kernels for CPU tensors, in the best instruction set that this processor has.";
  module.attr("isa") = cpu::kernels().isa;
  module.attr("isas") = cpu::built_isas();
  module.attr("compiler") = FLOWKERNELS_COMPILER;
  bind_affine_coupling<AffineLaunchers>(module);
  bind_stack<PlanarOptions, Planar>(module, "Planar");
  bind_stack<RadialOptions, Radial>(module, "Radial");
  bind_elementwise_ops<ElementwiseLaunchers>(module);
  bind_rational_quadratic_spline<SplineLaunchers>(module);
  bind_perceptron<PerceptronLaunchers>(module);
  bind_actnorm<ActnormLaunchers>(module);
  bind_squeeze<SqueezeLauncher>(module);
}
