// The class of perceptrons, called with addresses. Strides are in elements.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <vector>

#include "bindings/address.h"
#include "cpu/perceptron.h"

namespace flowkernels {

namespace py = pybind11;

using Strides = std::array<int64_t, 2>;
using Addresses = std::vector<Address>;

inline Perceptron perceptron(const std::vector<int64_t>& sizes, float slope, bool residual) {
  if (sizes.size() < 2 || sizes.size() > kMostLayers + 1) throw py::value_error("too few or too many layers");
  for (size_t l = 1; residual && l < sizes.size(); l += 2) {
    if (l + 1 == sizes.size() || sizes[l] != sizes[1]) throw py::value_error("layers that do not add up");
  }
  Perceptron net{static_cast<int>(sizes.size()) - 1, {}, slope, residual};
  std::copy(sizes.begin(), sizes.end(), net.sizes);
  return net;
}

inline Matrix matrix(Address address, const Strides& strides) {
  return {static_cast<const float*>(input(address)), strides[0], strides[1]};
}

template <class Pointer>
void set_pointers(const Perceptron& net, const Addresses& addresses, Pointer* pointers) {
  if (addresses.size() != 2 * static_cast<size_t>(net.layers)) throw py::value_error("a weight and a bias per layer");
  std::transform(addresses.begin(), addresses.end(), pointers,
                 [](Address address) { return static_cast<Pointer>(output(address)); });
}

// `Module` has forward and backward.
template <class Module>
void bind_perceptron(py::module_& module) {
  py::class_<Perceptron>(module, "Perceptron", py::module_local())
      .def(py::init(&perceptron), py::arg("sizes"), py::arg("slope"), py::arg("residual") = false)
      .def_readonly("residual", &Perceptron::residual)
      .def(
          "forward",
          [](const Perceptron& net, int64_t rows, Address x, const Strides& x_strides, const Addresses& parameters,
             Address y, Address hidden) {
            PerceptronForwardCall call{
                rows, matrix(x, x_strides), {}, static_cast<float*>(output(y)), static_cast<float*>(output(hidden))};
            set_pointers(net, parameters, call.parameters);
            py::gil_scoped_release released;
            Module::forward(net, call);
          },
          py::pos_only())
      .def(
          "backward",
          [](const Perceptron& net, int64_t rows, Address grad_y, const Strides& grad_y_strides, Address x,
             const Strides& x_strides, const Addresses& parameters, Address hidden, Address grad_x,
             const Addresses& grad_parameters) {
            PerceptronBackwardCall call{
                rows, matrix(grad_y, grad_y_strides),           matrix(x, x_strides),
                {},   static_cast<const float*>(input(hidden)), static_cast<float*>(output(grad_x)),
                {}};
            set_pointers(net, parameters, call.parameters);
            set_pointers(net, grad_parameters, call.grad_parameters);
            py::gil_scoped_release released;
            Module::backward(net, call);
          },
          py::pos_only());
}

}  // namespace flowkernels
