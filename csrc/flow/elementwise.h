// What a call of an elementwise op is told: up to three tensors are read and up to three written over one box, with one
// number per row read beside them, and something may be summed over each row. flowkernels/ops/elementwise.py makes it.
#pragma once

#include "flow/plan.h"

namespace flowkernels {

constexpr int kOperands = 3;

struct Operand {
  Dtype dtype;
  View view;
};

// The first input is never absent, and its dtype decides in what is computed.
template <class Options>
struct ElementwisePlan {
  Extent box;
  Operand input[kOperands], output[kOperands];
  int64_t row_stride;  // of the numbers per row
  Options options;
};

// Base addresses of one call; a null pointer is a tensor that is absent or not wanted. The numbers per row and the sums
// have the type in which is computed.
struct ElementwiseCall {
  const void *input[kOperands], *per_row;
  void *output[kOperands], *sums;
};

}  // namespace flowkernels
