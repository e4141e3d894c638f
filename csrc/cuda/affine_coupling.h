// Launchers of affine coupling. They throw std::runtime_error where CUDA reports an error.
#pragma once

#include <cstddef>

#include "flow/affine_coupling.h"

namespace flowkernels::cuda {

// Bytes of scratch memory that a call needs, 0 for none; the caller allocates them, aligned to 256 bytes.
size_t affine_coupling_forward_workspace(const AffineForwardPlan& plan);
size_t affine_coupling_backward_workspace(const AffineBackwardPlan& plan);

void affine_coupling_forward(const AffineForwardPlan& plan, const AffineForwardCall& call, void* workspace, int device,
                             void* stream);
void affine_coupling_backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call, void* workspace,
                              int device, void* stream);

}  // namespace flowkernels::cuda
