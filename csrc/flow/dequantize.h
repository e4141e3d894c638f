// Dequantization of one number: z = logit(q) with q = (x + u) (1 - alpha) / levels + alpha / 2, for a whole number x
// below `levels` and noise u in (0, 1); and the way back. Dinh et al., "Density estimation using Real NVP" (2017),
// section 4.1.
#pragma once

#include <cmath>

#include "flow/elementwise.h"
#include "flow/math.h"

namespace flowkernels {

struct DequantizeOptions {
  int64_t levels;
  double alpha;
};

// In the accumulation type, converted on the host.
template <class T>
struct DequantizeConstants {
  T last;              // the largest number
  T share, log_share;  // (1 - alpha) / levels
  T margin;            // alpha / 2
  T steps;             // levels / (1 - alpha)

  explicit DequantizeConstants(const DequantizeOptions& o)
      : last(static_cast<T>(o.levels - 1)),
        share(static_cast<T>((1 - o.alpha) / o.levels)),
        log_share(static_cast<T>(std::log1p(-o.alpha) - std::log(static_cast<double>(o.levels)))),
        margin(static_cast<T>(o.alpha / 2)),
        steps(static_cast<T>(o.levels / (1 - o.alpha))) {}
};

template <class T>
struct Dequantized {
  T z;
  T log_slope;  // log dz/du
};

// q and 1 - q are each a sum of positive terms: from a rounded q, 1 - q would be off by up to half a percent.
template <class T>
FK_INLINE Dequantized<T> dequantize(T x, T u, const DequantizeConstants<T> c) {
  const T q = (x + u) * c.share + c.margin, rest = ((c.last - x) + (T(1) - u)) * c.share + c.margin;
  const math::Logs<T> log = math::logs_of_shares(q, rest);
  return {log.x - log.y, c.log_share - (log.x + log.y)};
}

// The gradient of u, from z alone: dz/du = share / (q (1 - q)) with 4 q (1 - q) = sech²(z / 2), and the derivative of
// log dz/du by z is 2 q - 1 = tanh(z / 2).
template <class T>
FK_INLINE T dequantize_backward(T grad_z, T grad_log_det, T z, const DequantizeConstants<T> c) {
  const math::TanhSech2<T> h = math::tanh_sech2(T(0.5) * z);
  return (grad_z + grad_log_det * h.tanh) * (T(4) * c.share / h.sech2);
}

// The whole number with a fraction that storing it as an integer drops, from 0 to `last`; 0 for NaN. To drop it here
// would keep g++ from vectorising.
template <class T>
FK_INLINE T quantize(T z, const DequantizeConstants<T> c) {
  const T x = (math::sigmoid(z) - c.margin) * c.steps;
  const T below = c.last < x ? c.last : x;
  return T(0) < below ? below : T(0);
}

}  // namespace flowkernels
