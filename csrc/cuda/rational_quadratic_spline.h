// Launchers of rational-quadratic splines. They throw std::runtime_error where CUDA reports an error.
#pragma once

#include <cstddef>

#include "flow/rational_quadratic_spline.h"

namespace flowkernels::cuda {

// Bytes of scratch memory that a call needs, 0 for none; the caller allocates them, aligned to 256 bytes.
size_t spline_forward_workspace(const SplineForwardPlan& plan);

void spline_forward(const SplineForwardPlan& plan, const SplineForwardCall& call, void* workspace, int device,
                    void* stream);
void spline_backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call, int device, void* stream);

}  // namespace flowkernels::cuda
