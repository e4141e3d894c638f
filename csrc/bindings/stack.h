// The plan classes of planar and radial flows, the same for every native module. A plan is made from keyword arguments,
// each a field of a struct in flow/stack.h, and called with addresses.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "bindings/address.h"
#include "flow/planar.h"
#include "flow/radial.h"

namespace flowkernels {

namespace py = pybind11;

template <size_t n>
void read(const py::kwargs& arguments, const char* name, int64_t (&into)[n]) {
  const auto values = arguments[name].cast<std::array<int64_t, n>>();
  std::copy(values.begin(), values.end(), into);
}

inline StackPlan stack_plan(const py::kwargs& a) {
  StackPlan plan;
  plan.x_dtype = static_cast<Dtype>(a["x_dtype"].cast<int>());
  plan.rows = a["rows"].cast<int64_t>();
  plan.features = a["features"].cast<int64_t>();
  plan.depth = a["depth"].cast<int64_t>();
  plan.per_example = a["per_example"].cast<bool>();
  plan.inverse = a["inverse"].cast<bool>();
  read(a, "parameter_strides", plan.parameter_strides);
  return plan;
}

inline void read_options(const py::kwargs& a, PlanarOptions& options) {
  const auto name = a["activation"].cast<std::string>();
  if (name != "tanh" && name != "leaky_relu") throw std::invalid_argument("activation: " + name);
  options.activation = name == "tanh" ? Activation::tanh : Activation::leaky_relu;
  options.negative_slope = a["negative_slope"].cast<double>();
}

inline void read_options(const py::kwargs&, RadialOptions&) {}

template <class Options>
StackForwardPlan<Options> stack_forward_plan(const py::kwargs& a) {
  StackForwardPlan<Options> plan{};
  plan.common = stack_plan(a);
  read_options(a, plan.options);
  read(a, "x_strides", plan.x_strides);
  return plan;
}

template <class Options>
StackBackwardPlan<Options> stack_backward_plan(const py::kwargs& a) {
  StackBackwardPlan<Options> plan{};
  plan.common = stack_plan(a);
  read_options(a, plan.options);
  read(a, "saved_strides", plan.saved_strides);
  read(a, "grad_y_strides", plan.grad_y_strides);
  plan.grad_log_det_stride = a["grad_log_det_stride"].cast<int64_t>();
  plan.of_parameters = a["of_parameters"].cast<bool>();
  return plan;
}

// `Module` names the launchers of one backend: forward_workspace, forward, backward_workspace, backward.
template <class Options, class Module>
void bind_stack(py::module_& module, const std::string& name) {
  using Forward = StackForwardPlan<Options>;
  using Backward = StackBackwardPlan<Options>;
  py::class_<Forward>(module, (name + "Forward").c_str(), py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return stack_forward_plan<Options>(arguments); }))
      .def_property_readonly("workspace", [](const Forward& plan) { return Module::forward_workspace(plan); })
      .def(
          "__call__",
          [](const Forward& plan, Address x, Address first, Address second, Address third, Address y, Address log_det,
             Address workspace, int device, Address stream) {
            const StackForwardCall call{
                input(x), {input(first), input(second), input(third)}, output(y), output(log_det)};
            py::gil_scoped_release released;
            Module::forward(plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
  py::class_<Backward>(module, (name + "Backward").c_str(), py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return stack_backward_plan<Options>(arguments); }))
      .def_property_readonly("workspace", [](const Backward& plan) { return Module::backward_workspace(plan); })
      .def(
          "__call__",
          [](const Backward& plan, Address grad_y, Address grad_log_det, Address saved, Address first, Address second,
             Address third, Address grad_x, Address grad_first, Address grad_second, Address grad_third,
             Address workspace, int device, Address stream) {
            const StackBackwardCall call{input(grad_y),  input(grad_log_det),
                                         input(saved),   {input(first), input(second), input(third)},
                                         output(grad_x), {output(grad_first), output(grad_second), output(grad_third)}};
            py::gil_scoped_release released;
            Module::backward(plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
}

}  // namespace flowkernels
