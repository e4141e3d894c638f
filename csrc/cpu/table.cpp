#include "cpu/kernels.h"

#define FLOWKERNELS_TEXT(name) #name
#define FLOWKERNELS_NAME(name) FLOWKERNELS_TEXT(name)

namespace flowkernels::cpu::FLOWKERNELS_ISA {

void affine_coupling_forward(const AffineForwardPlan& plan, const AffineForwardCall& call);
void affine_coupling_backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call);
void planar_stack_forward(const StackForwardPlan<PlanarOptions>& plan, const StackForwardCall& call);
void planar_stack_backward(const StackBackwardPlan<PlanarOptions>& plan, const StackBackwardCall& call);
void radial_stack_forward(const StackForwardPlan<RadialOptions>& plan, const StackForwardCall& call);
void radial_stack_backward(const StackBackwardPlan<RadialOptions>& plan, const StackBackwardCall& call);
void dequantize_forward(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall& call);
void dequantize_backward(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall& call);
void quantize(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall& call);
void split_forward(const ElementwisePlan<SplitOptions>& plan, const ElementwiseCall& call);
void split_backward(const ElementwisePlan<SplitOptions>& plan, const ElementwiseCall& call);
void rational_quadratic_spline_forward(const SplineForwardPlan& plan, const SplineForwardCall& call);
void rational_quadratic_spline_backward(const SplineBackwardPlan& plan, const SplineBackwardCall& call);
void perceptron_forward(const Perceptron& net, const PerceptronForwardCall& call);
void perceptron_backward(const Perceptron& net, const PerceptronBackwardCall& call);
void actnorm_forward(const Actnorm& plan, const ActnormForwardCall& call);
void actnorm_backward(const Actnorm& plan, const ActnormBackwardCall& call);
void squeeze(const Squeeze& plan, const SqueezeCall& call);

extern const Kernels table;
const Kernels table = {
    FLOWKERNELS_NAME(FLOWKERNELS_ISA),
    affine_coupling_forward,
    affine_coupling_backward,
    planar_stack_forward,
    planar_stack_backward,
    radial_stack_forward,
    radial_stack_backward,
    dequantize_forward,
    dequantize_backward,
    quantize,
    split_forward,
    split_backward,
    rational_quadratic_spline_forward,
    rational_quadratic_spline_backward,
    perceptron_forward,
    perceptron_backward,
    actnorm_forward,
    actnorm_backward,
    squeeze,
};

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
