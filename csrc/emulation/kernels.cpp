// The CUDA sources, compiled for the emulation: the language of a source cannot differ between two targets of one
// directory in CMake, so they are included.
#include "cuda/affine_coupling.cu"
#include "cuda/dequantize.cu"
#include "cuda/device.cu"
#include "cuda/planar.cu"
#include "cuda/radial.cu"
#include "cuda/rational_quadratic_spline.cu"
#include "cuda/split.cu"
