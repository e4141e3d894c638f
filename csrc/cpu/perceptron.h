// Perceptrons: linear layers with a leaky ReLU between them. Residual ones: between two linear layers, blocks of two,
// each behind a leaky ReLU, whose output is added to the block's input. For the CPU alone: on GPUs torch's products
// leave nothing.
#pragma once

#include <cstdint>

namespace flowkernels {

constexpr int kMostLayers = 8;
constexpr int kPerceptronRows = 64;  // of a tile, in which hidden units are stored; as TILE in ops/perceptron.py

struct Perceptron {
  int layers;
  int64_t sizes[kMostLayers + 1];  // of the input, of every hidden layer, of the output
  float slope;                     // of the activation below zero
  bool residual;                   // then layers are even in number, and those that add up equal in size
};

// A matrix in memory, in elements.
struct Matrix {
  const float* values;
  int64_t row_stride, column_stride;
};

struct PerceptronForwardCall {
  int64_t rows;
  Matrix x;
  const float* parameters[2 * kMostLayers];  // weight and bias of each layer, contiguous
  float* y;                                  // contiguous
  float* hidden;  // for each tile the inputs of all layers but the first, unit by unit; null: nobody will ask
};

struct PerceptronBackwardCall {
  int64_t rows;
  Matrix grad_y, x;
  const float* parameters[2 * kMostLayers];
  const float* hidden;
  float* grad_x;  // contiguous, as those of the parameters; null where nobody asks
  float* grad_parameters[2 * kMostLayers];
};

}  // namespace flowkernels
