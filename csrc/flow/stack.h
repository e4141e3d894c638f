// What planar and radial flows have in common: K layers over rows of D features, with three parameter tensors per
// layer, shared by all rows or one set per row. Python reduces a call to these structs once and keeps them.
#pragma once

#include "flow/inline.h"
#include "flow/plan.h"

namespace flowkernels {

constexpr int kStackParameters = 3;

// Parameters are in the accumulation type of x, float or double, and what belongs to a row is contiguous: (K, D) or
// (K,). Outputs and gradients are dense.
struct StackPlan {
  Dtype x_dtype;  // of x and y and their gradients
  int64_t rows, features, depth;
  bool per_example;
  bool inverse;
  int64_t parameter_strides[kStackParameters];  // from row to row in elements, 0 where shared
};

// Options is PlanarOptions or RadialOptions: what a layer needs beside its parameters.
template <class Options>
struct StackForwardPlan {
  StackPlan common;
  Options options;
  int64_t x_strides[2];
};

template <class Options>
struct StackBackwardPlan {
  StackPlan common;
  Options options;
  int64_t saved_strides[2];  // of the input of a forward stack, or the output of an inverse one
  int64_t grad_y_strides[2];
  int64_t grad_log_det_stride;
  bool of_parameters;  // whether their gradients are wanted
};

// Parameters in the order of the Python functions: u, w, b; center, alpha, beta.
struct StackForwardCall {
  const void* x;
  const void* parameters[kStackParameters];
  void* y;
  void* log_det;
};

// The gradients given may be null, which means zero; those of x and of all parameters may be null, which means not
// wanted.
struct StackBackwardCall {
  const void* grad_y;
  const void* grad_log_det;
  const void* saved;
  const void* parameters[kStackParameters];
  void* grad_x;
  void* grad_parameters[kStackParameters];
};

// A determinant is a product with a factor per layer, of which one logarithm is taken per kFactors. Factors so far
// from 1 that the product could leave the range of numbers are for the caller to take the logarithm of.
template <class T>
struct LogProduct {
  static constexpr int kFactors = 4;
  static constexpr T kLargest = sizeof(T) == 4 ? T(1e9) : T(1e70);
  static constexpr T kSmallest = 1 / kLargest;

  static FK_INLINE bool takes(T factor) { return kSmallest < factor && factor < kLargest; }
};

}  // namespace flowkernels
