// Launchers of planar and radial flows, defined for PlanarOptions in planar.cu and for RadialOptions in radial.cu. They
// throw std::runtime_error where CUDA reports an error.
#pragma once

#include <cstddef>

#include "flow/planar.h"
#include "flow/radial.h"

namespace flowkernels::cuda {

template <class Options>
struct StackLaunchers {
  // Bytes of scratch memory that a call needs, 0 for none; the caller allocates them, aligned to 256 bytes.
  static size_t forward_workspace(const StackForwardPlan<Options>& plan);
  static size_t backward_workspace(const StackBackwardPlan<Options>& plan);

  static void forward(const StackForwardPlan<Options>& plan, const StackForwardCall& call, void* workspace, int device,
                      void* stream);
  static void backward(const StackBackwardPlan<Options>& plan, const StackBackwardCall& call, void* workspace,
                       int device, void* stream);
};

}  // namespace flowkernels::cuda
