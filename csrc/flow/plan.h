// What a native call is told about its tensors. Python reduces every call to these structs once per (form, shapes,
// strides, dtypes) and keeps them; a call itself then passes base addresses only. No backend knows more than this.
#pragma once

#include <cstdint>

namespace flowkernels {

enum class Dtype : int32_t { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3, uint8 = 4, int32 = 5 };

constexpr int kDims = 4;  // the batch row, then up to three event dimensions, outermost first

// The box of elements that a call visits; unused event dimensions have size 1 and come first.
struct Extent {
  int64_t size[kDims];

  int64_t rows() const { return size[0]; }
  int64_t per_row() const { return size[1] * size[2] * size[3]; }
};

// Where one tensor's elements of the box lie: base address + offset + sum of index * stride, all in elements.
// Strides may be 0 (expanded tensors).
struct View {
  int64_t offset;
  int64_t stride[kDims];
};

}  // namespace flowkernels
