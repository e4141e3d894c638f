#include <optional>
#include <sstream>

#include "bindings/affine_coupling.h"
#include "bindings/elementwise.h"
#include "bindings/rational_quadratic_spline.h"
#include "bindings/stack.h"
#include "cuda/affine_coupling.h"
#include "cuda/device.h"
#include "cuda/elementwise.h"
#include "cuda/rational_quadratic_spline.h"
#include "cuda/stack.h"

#if defined(FLOWKERNELS_EMULATED)
#include "emulation/binding.h"
#endif

namespace {

using namespace flowkernels;

struct AffineLaunchers {
  static size_t forward_workspace(const AffineForwardPlan& plan) {
    return cuda::affine_coupling_forward_workspace(plan);
  }
  static size_t backward_workspace(const AffineBackwardPlan& plan) {
    return cuda::affine_coupling_backward_workspace(plan);
  }
  static void forward(const AffineForwardPlan& plan, const AffineForwardCall& call, void* workspace, int device,
                      void* stream) {
    cuda::affine_coupling_forward(plan, call, workspace, device, stream);
  }
  static void backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void* workspace, int device,
                       void* stream) {
    cuda::affine_coupling_backward(plan, call, workspace, device, stream);
  }
};

struct SplineLaunchers {
  static size_t forward_workspace(const SplineForwardPlan& plan) { return cuda::spline_forward_workspace(plan); }
  static size_t backward_workspace(const SplineBackwardPlan&) { return 0; }
  static void forward(const SplineForwardPlan& plan, const SplineForwardCall& call, void* workspace, int device,
                      void* stream) {
    cuda::spline_forward(plan, call, workspace, device, stream);
  }
  static void backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call, void*, int device,
                       void* stream) {
    cuda::spline_backward(plan, call, device, stream);
  }
};

std::vector<std::string> architectures() {
  std::istringstream words(FLOWKERNELS_CUDA_ARCHS);
  return {std::istream_iterator<std::string>(words), {}};
}

std::optional<std::string> device_problem(int device) {
  const std::string problem = cuda::device_problem(device);
  return problem.empty() ? std::nullopt : std::optional(problem);
}

}  // namespace

// Importing makes no call of the CUDA runtime: that would break processes that fork later.
PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Kernels for CUDA tensors.";
  module.attr("architectures") = architectures();
  module.attr("compiler") = FLOWKERNELS_COMPILER;
  module.def("device_problem", &device_problem, py::arg("device"), "Why a device cannot be used, or None if it can.");
  bind_affine_coupling<AffineLaunchers>(module);
  bind_rational_quadratic_spline<SplineLaunchers>(module);
  bind_stack<PlanarOptions, cuda::StackLaunchers<PlanarOptions>>(module, "Planar");
  bind_stack<RadialOptions, cuda::StackLaunchers<RadialOptions>>(module, "Radial");
  bind_elementwise_ops<cuda::ElementwiseLaunchers>(module);
#if defined(FLOWKERNELS_EMULATED)
  module.attr("emulated") = true;
  bind_emulation(module);
#else
  module.attr("emulated") = false;
#endif
}
