// Launchers of elementwise ops, defined in dequantize.cu and split.cu. They throw std::runtime_error where CUDA reports
// an error.
#pragma once

#include <cstddef>

#include "flow/dequantize.h"
#include "flow/split.h"

namespace flowkernels::cuda {

template <class Op, class Options>
struct ElementwiseLauncher {
  // Bytes of scratch memory that a call needs, 0 for none; the caller allocates them, aligned to 256 bytes.
  static size_t workspace(const ElementwisePlan<Options>& plan);

  static void launch(const ElementwisePlan<Options>& plan, const ElementwiseCall& call, void* workspace, int device,
                     void* stream);
};

struct DequantizeForward;
struct DequantizeBackward;
struct Quantize;
struct SplitForward;
struct SplitBackward;

struct ElementwiseLaunchers {
  using DequantizeForward = ElementwiseLauncher<cuda::DequantizeForward, DequantizeOptions>;
  using DequantizeBackward = ElementwiseLauncher<cuda::DequantizeBackward, DequantizeOptions>;
  using Quantize = ElementwiseLauncher<cuda::Quantize, DequantizeOptions>;
  using SplitForward = ElementwiseLauncher<cuda::SplitForward, SplitOptions>;
  using SplitBackward = ElementwiseLauncher<cuda::SplitBackward, SplitOptions>;
};

}  // namespace flowkernels::cuda
