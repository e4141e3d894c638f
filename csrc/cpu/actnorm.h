// Activation normalisation, y = e^log_scale x + shift for each channel: Kingma and Dhariwal, "Glow" (2018),
// section 3.1. For the CPU alone: on GPUs torch's batch normalisation is the same pass.
#pragma once

#include <cstdint>

namespace flowkernels {

struct Actnorm {
  int64_t rows, channels, pixels;
  int64_t row_stride;  // of x, in elements; all else is dense
  bool channels_last;  // channels are neighbours, else pixels are; with several pixels x is dense then
  bool double_precision;
  bool inverse;  // y = (x - shift) e^-log_scale
};

struct ActnormForwardCall {
  const void *x, *log_scale, *shift;
  void *y, *log_det;
};

struct ActnormBackwardCall {
  const void *grad_y, *grad_log_det;
  int64_t grad_log_det_stride;
  const void *x, *log_scale, *shift;
  void *grad_x, *grad_log_scale, *grad_shift;  // that of x is null where nobody asks
};

}  // namespace flowkernels
