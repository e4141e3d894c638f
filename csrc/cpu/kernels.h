// The kernels of one instruction set, and the choice among those built. Every <op>.cpp is compiled once per
// instruction set; a table of function pointers is all that leaves such a translation unit.
#pragma once

#include <string>
#include <vector>

#include "cpu/actnorm.h"
#include "cpu/perceptron.h"
#include "cpu/squeeze.h"
#include "flow/affine_coupling.h"
#include "flow/dequantize.h"
#include "flow/planar.h"
#include "flow/radial.h"
#include "flow/rational_quadratic_spline.h"
#include "flow/split.h"

namespace flowkernels::cpu {

struct Kernels {
  const char* isa;
  void (*affine_coupling_forward)(const AffineForwardPlan&, const AffineForwardCall&);
  void (*affine_coupling_backward)(const AffineBackwardPlan&, const AffineBackwardCall&);
  void (*planar_forward)(const StackForwardPlan<PlanarOptions>&, const StackForwardCall&);
  void (*planar_backward)(const StackBackwardPlan<PlanarOptions>&, const StackBackwardCall&);
  void (*radial_forward)(const StackForwardPlan<RadialOptions>&, const StackForwardCall&);
  void (*radial_backward)(const StackBackwardPlan<RadialOptions>&, const StackBackwardCall&);
  void (*dequantize_forward)(const ElementwisePlan<DequantizeOptions>&, const ElementwiseCall&);
  void (*dequantize_backward)(const ElementwisePlan<DequantizeOptions>&, const ElementwiseCall&);
  void (*quantize)(const ElementwisePlan<DequantizeOptions>&, const ElementwiseCall&);
  void (*split_forward)(const ElementwisePlan<SplitOptions>&, const ElementwiseCall&);
  void (*split_backward)(const ElementwisePlan<SplitOptions>&, const ElementwiseCall&);
  void (*rational_quadratic_spline_forward)(const SplineForwardPlan&, const SplineForwardCall&);
  void (*rational_quadratic_spline_backward)(const SplineBackwardPlan&, const SplineBackwardCall&);
  void (*perceptron_forward)(const Perceptron&, const PerceptronForwardCall&);
  void (*perceptron_backward)(const Perceptron&, const PerceptronBackwardCall&);
  void (*actnorm_forward)(const Actnorm&, const ActnormForwardCall&);
  void (*actnorm_backward)(const Actnorm&, const ActnormBackwardCall&);
  void (*squeeze)(const Squeeze&, const SqueezeCall&);
};

// The best set that this processor runs; the environment variable FLOWKERNELS_ISA (baseline, avx2, avx512) lowers the
// choice. Throws std::runtime_error where it names a set that is not built or cannot run here.
const Kernels& kernels();

std::vector<std::string> built_isas();

}  // namespace flowkernels::cpu
