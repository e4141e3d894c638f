#include "cpu/kernels.h"

#define FLOWKERNELS_TEXT(name) #name
#define FLOWKERNELS_NAME(name) FLOWKERNELS_TEXT(name)

namespace flowkernels::cpu::FLOWKERNELS_ISA {

void affine_coupling_forward(const AffineForwardPlan& plan, const AffineForwardCall& call);
void affine_coupling_backward(const AffineBackwardPlan& plan, const AffineBackwardCall& call);

extern const Kernels table;
const Kernels table = {FLOWKERNELS_NAME(FLOWKERNELS_ISA), affine_coupling_forward, affine_coupling_backward};

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
