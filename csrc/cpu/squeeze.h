// Squares of 2 x 2 pixels as four channels, and back: Dinh et al., "Density estimation using Real NVP" (2017), section
// 3.6. Elements of any type are moved. For the CPU alone: on GPUs torch's copies leave nothing.
#pragma once

#include <cstdint>

namespace flowkernels {

// Steps between rows of the batch, channels, lines and columns, in elements.
struct PictureStrides {
  int64_t row, channel, line, column;
};

struct Squeeze {
  int64_t rows, channels, lines, columns;  // of the batch; of the picture; of what it is squeezed to, twice
  int64_t element_size;                    // 1, 2, 4 or 8 bytes
  PictureStrides picture, squeezed;        // columns have step 1 in both, or channels do
};

// `back` writes the picture, else it is read.
struct SqueezeCall {
  void *picture, *squeezed;
  bool back;
};

}  // namespace flowkernels
