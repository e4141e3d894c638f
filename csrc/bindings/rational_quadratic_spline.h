// The plan classes of rational-quadratic splines, the same for every native module. A plan is made from keyword
// arguments, each a field of a struct in flow/rational_quadratic_spline.h, and called with addresses.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/address.h"
#include "bindings/plan.h"
#include "flow/rational_quadratic_spline.h"

namespace flowkernels {

inline SplineOptions spline_options(const py::kwargs& a) {
  SplineOptions options;
  options.bins = a["bins"].cast<int64_t>();
  options.normalization = static_cast<Normalization>(a["normalization"].cast<int>());
  options.derivative = static_cast<KnotDerivative>(a["derivative"].cast<int>());
  options.tails = static_cast<Tails>(a["tails"].cast<int>());
  options.left_side = a["left_side"].cast<bool>();
  options.inverse = a["inverse"].cast<bool>();
  options.left = a["left"].cast<double>();
  options.right = a["right"].cast<double>();
  options.bottom = a["bottom"].cast<double>();
  options.top = a["top"].cast<double>();
  options.min_width = a["min_width"].cast<double>();
  options.min_height = a["min_height"].cast<double>();
  options.min_derivative = a["min_derivative"].cast<double>();
  options.logit_scale = a["logit_scale"].cast<double>();
  options.width_clip = a["width_clip"].cast<double>();
  options.derivative_clip = a["derivative_clip"].cast<double>();
  options.width_shift = a["width_shift"].cast<double>();
  options.height_shift = a["height_shift"].cast<double>();
  options.derivative_shift = a["derivative_shift"].cast<double>();
  return options;
}

inline SplinePlan spline_plan(const py::kwargs& a) {
  return {spline_options(a),
          a["has_mask"].cast<bool>(),
          static_cast<Dtype>(a["x_dtype"].cast<int>()),
          static_cast<Dtype>(a["raw_dtype"].cast<int>()),
          extent(a, "active"),
          extent(a, "passive"),
          view(a, "raw"),
          view(a, "mask"),
          a["raw_step"].cast<int64_t>()};
}

inline SplineForwardPlan spline_forward_plan(const py::kwargs& a) {
  return {spline_plan(a), view(a, "x"), view(a, "y"), view(a, "x_passive"), view(a, "y_passive")};
}

inline SplineBackwardPlan spline_backward_plan(const py::kwargs& a) {
  return {spline_plan(a),
          view(a, "grad_y"),
          view(a, "saved"),
          view(a, "grad_x"),
          view(a, "grad_raw"),
          view(a, "grad_y_passive"),
          view(a, "grad_x_passive"),
          a["grad_raw_step"].cast<int64_t>(),
          a["grad_log_det_stride"].cast<int64_t>()};
}

// `Module` names the launchers of one backend: forward_workspace, forward, backward_workspace, backward.
template <class Module>
void bind_rational_quadratic_spline(py::module_& module) {
  // Local to the module: pybind11 shares types between modules, and the CPU module has these as well.
  py::class_<SplineForwardPlan>(module, "SplineForward", py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return spline_forward_plan(arguments); }))
      .def_property_readonly("workspace", &Module::forward_workspace)
      .def(
          "__call__",
          [](const SplineForwardPlan& plan, Address x, Address raw, Address mask, Address y, Address log_det,
             Address workspace, int device, Address stream) {
            const SplineForwardCall call{input(x), input(raw), input(mask), output(y), output(log_det)};
            py::gil_scoped_release released;
            Module::forward(plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
  py::class_<SplineBackwardPlan>(module, "SplineBackward", py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return spline_backward_plan(arguments); }))
      .def_property_readonly("workspace", &Module::backward_workspace)
      .def(
          "__call__",
          [](const SplineBackwardPlan& plan, Address grad_y, Address grad_log_det, Address saved, Address raw,
             Address mask, Address grad_x, Address grad_raw, Address workspace, int device, Address stream) {
            const SplineBackwardCall call{input(grad_y), input(grad_log_det), input(saved),    input(raw),
                                          input(mask),   output(grad_x),      output(grad_raw)};
            py::gil_scoped_release released;
            Module::backward(plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
}

}  // namespace flowkernels
