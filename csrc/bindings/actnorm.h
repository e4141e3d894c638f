// The class of activation normalisations, called with addresses. Strides are in elements.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/address.h"
#include "cpu/actnorm.h"

namespace flowkernels {

namespace py = pybind11;

inline Actnorm actnorm_of(int64_t rows, int64_t channels, int64_t pixels, int64_t row_stride, bool channels_last,
                          bool double_precision, bool inverse) {
  return {rows, channels, pixels, row_stride, channels_last, double_precision, inverse};
}

// `Module` has forward and backward.
template <class Module>
void bind_actnorm(py::module_& module) {
  py::class_<Actnorm>(module, "Actnorm", py::module_local())
      .def(py::init(&actnorm_of), py::kw_only(), py::arg("rows"), py::arg("channels"), py::arg("pixels"),
           py::arg("row_stride"), py::arg("channels_last"), py::arg("double_precision"), py::arg("inverse"))
      .def(
          "forward",
          [](const Actnorm& plan, Address x, Address log_scale, Address shift, Address y, Address log_det) {
            py::gil_scoped_release released;
            Module::forward(plan, {input(x), input(log_scale), input(shift), output(y), output(log_det)});
          },
          py::pos_only())
      .def(
          "backward",
          [](const Actnorm& plan, Address grad_y, Address grad_log_det, int64_t grad_log_det_stride, Address x,
             Address log_scale, Address shift, Address grad_x, Address grad_log_scale, Address grad_shift) {
            py::gil_scoped_release released;
            Module::backward(plan, {input(grad_y), input(grad_log_det), grad_log_det_stride, input(x), input(log_scale),
                                    input(shift), output(grad_x), output(grad_log_scale), output(grad_shift)});
          },
          py::pos_only());
}

}  // namespace flowkernels
