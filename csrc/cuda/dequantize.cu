// Dequantization. The inputs are noise and x, then z and its gradient, then z.
#include "cuda/elementwise.cuh"
#include "flow/dequantize.h"

namespace flowkernels::cuda {

struct DequantizeForward {
  static constexpr const char* kName = "dequantize_forward";
  static constexpr int kInputs = 2, kOutputs = 1;
  static constexpr bool kSums = true;
  template <class X, class S>
  using Output = X;

  template <class T>
  struct Formula {
    DequantizeConstants<T> constants;

    Formula(const DequantizeOptions& options, const ElementwiseCall&) : constants(options) {}

    FK_INLINE void operator()(elementwise::Element<T>& e) const {
      const Dequantized<T> found = dequantize(e.input[1], e.input[0], constants);
      e.output[0] = found.z;
      e.term = found.log_slope;
    }
  };

  // x is stored as bytes or in the type in which is computed.
  template <class F>
  static void with_storage(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall&, F&& f) {
    with_type(plan.input[0].dtype, [&](auto noise) {
      if (plan.input[1].dtype == Dtype::uint8) return f(noise, Type<uint8_t>{});
      f(noise, Type<Accumulation<typename decltype(noise)::type>>{});
    });
  }
};

struct DequantizeBackward {
  static constexpr const char* kName = "dequantize_backward";
  static constexpr int kInputs = 2, kOutputs = 1;
  static constexpr bool kSums = false;
  template <class X, class S>
  using Output = X;

  template <class T>
  struct Formula {
    DequantizeConstants<T> constants;

    Formula(const DequantizeOptions& options, const ElementwiseCall&) : constants(options) {}

    FK_INLINE void operator()(elementwise::Element<T>& e) const {
      e.output[0] = dequantize_backward(e.input[1], e.per_row, e.input[0], constants);
    }
  };

  template <class F>
  static void with_storage(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall&, F&& f) {
    with_type(plan.input[0].dtype, [&](auto z) { f(z, z); });
  }
};

struct Quantize {
  static constexpr const char* kName = "quantize";
  static constexpr int kInputs = 1, kOutputs = 1;
  static constexpr bool kSums = false;
  template <class X, class S>
  using Output = S;

  template <class T>
  struct Formula {
    DequantizeConstants<T> constants;

    Formula(const DequantizeOptions& options, const ElementwiseCall&) : constants(options) {}

    FK_INLINE void operator()(elementwise::Element<T>& e) const { e.output[0] = quantize(e.input[0], constants); }
  };

  template <class F>
  static void with_storage(const ElementwisePlan<DequantizeOptions>& plan, const ElementwiseCall&, F&& f) {
    with_type(plan.input[0].dtype, [&](auto z) {
      if (plan.output[0].dtype == Dtype::uint8) return f(z, Type<uint8_t>{});
      f(z, Type<int32_t>{});
    });
  }
};

template struct ElementwiseLauncher<DequantizeForward, DequantizeOptions>;
template struct ElementwiseLauncher<DequantizeBackward, DequantizeOptions>;
template struct ElementwiseLauncher<Quantize, DequantizeOptions>;

}  // namespace flowkernels::cuda
