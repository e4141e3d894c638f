// Reading the parts that plans share from keyword arguments.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "flow/plan.h"

namespace flowkernels {

namespace py = pybind11;

inline Extent extent(const py::kwargs& arguments, const char* name) {
  const auto values = arguments[name].cast<std::array<int64_t, kDims>>();
  Extent extent;
  std::copy(values.begin(), values.end(), extent.size);
  return extent;
}

// A view that the call does not have is left at zero.
inline View view(const py::kwargs& arguments, const char* name) {
  View view{};
  if (!arguments.contains(name)) return view;
  const auto values = arguments[name].cast<std::array<int64_t, kDims + 1>>();
  view.offset = values[0];
  std::copy(values.begin() + 1, values.end(), view.stride);
  return view;
}

}  // namespace flowkernels
