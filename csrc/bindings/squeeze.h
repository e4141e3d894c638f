// The class of squeezes, called with addresses. Sizes and strides are in elements.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "bindings/address.h"
#include "cpu/squeeze.h"

namespace flowkernels {

namespace py = pybind11;

inline Squeeze squeeze_of(const std::array<int64_t, 4>& sizes, int64_t element_size,
                          const std::array<int64_t, 4>& picture, const std::array<int64_t, 4>& squeezed) {
  const auto strides = [](const std::array<int64_t, 4>& s) { return PictureStrides{s[0], s[1], s[2], s[3]}; };
  if (element_size != 1 && element_size != 2 && element_size != 4 && element_size != 8)
    throw py::value_error("elements have 1, 2, 4 or 8 bytes");
  if (!(picture[3] == 1 && squeezed[3] == 1) && !(picture[1] == 1 && squeezed[1] == 1))
    throw py::value_error("columns have step 1 in both, or channels do");
  return {sizes[0], sizes[1], sizes[2], sizes[3], element_size, strides(picture), strides(squeezed)};
}

template <class Module>
void bind_squeeze(py::module_& module) {
  py::class_<Squeeze>(module, "Squeeze", py::module_local())
      .def(py::init(&squeeze_of), py::kw_only(), py::arg("sizes"), py::arg("element_size"), py::arg("picture"),
           py::arg("squeezed"))
      .def(
          "__call__",
          [](const Squeeze& plan, Address picture, Address squeezed, bool back) {
            py::gil_scoped_release released;
            Module::run(plan, {output(picture), output(squeezed), back});
          },
          py::pos_only());
}

}  // namespace flowkernels
