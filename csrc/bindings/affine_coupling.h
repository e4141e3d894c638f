// The plan classes of affine coupling, the same for every native module. A plan is made from keyword arguments, each
// a field of the struct of the same name in flow/affine_coupling.h, and called with addresses.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/address.h"
#include "bindings/plan.h"
#include "flow/affine_coupling.h"

namespace flowkernels {

inline AffinePlan affine_plan(const py::kwargs& a) {
  AffinePlan plan;
  plan.x_dtype = static_cast<Dtype>(a["x_dtype"].cast<int>());
  plan.raw_dtype = static_cast<Dtype>(a["raw_dtype"].cast<int>());
  plan.map = static_cast<ScaleMap>(a["map"].cast<int>());
  plan.divide = a["divide"].cast<bool>();
  plan.shift_first = a["shift_first"].cast<bool>();
  plan.has_mask = a["has_mask"].cast<bool>();
  plan.has_bound_tensor = a["has_bound_tensor"].cast<bool>();
  plan.bound = a["bound"].cast<double>();
  plan.first = a["first"].cast<double>();
  plan.second = a["second"].cast<double>();
  plan.scale_factor = a["scale_factor"].cast<double>();
  plan.shift_factor = a["shift_factor"].cast<double>();
  plan.channels = a["channels"].cast<int64_t>();
  plan.active = extent(a, "active");
  plan.passive = extent(a, "passive");
  plan.scale = view(a, "scale");
  plan.mask = view(a, "mask");
  plan.bound_view = view(a, "bound_view");
  return plan;
}

inline AffineForwardPlan affine_forward_plan(const py::kwargs& a) {
  return {affine_plan(a), view(a, "x"), view(a, "y"), view(a, "shift"), view(a, "x_passive"), view(a, "y_passive")};
}

inline AffineBackwardPlan affine_backward_plan(const py::kwargs& a) {
  return {affine_plan(a),
          view(a, "grad_y"),
          view(a, "saved"),
          view(a, "grad_x"),
          view(a, "grad_scale"),
          view(a, "grad_shift"),
          view(a, "grad_y_passive"),
          view(a, "grad_x_passive"),
          a["grad_log_det_stride"].cast<int64_t>()};
}

// `Module` names the launchers of one backend: forward_workspace, forward, backward_workspace, backward.
template <class Module>
void bind_affine_coupling(py::module_& module) {
  // Local to the module: pybind11 shares types between modules, and the CPU module has these as well.
  py::class_<AffineForwardPlan>(module, "AffineForward", py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return affine_forward_plan(arguments); }))
      .def_property_readonly("workspace", &Module::forward_workspace)
      .def(
          "__call__",
          [](const AffineForwardPlan& plan, Address x, Address scale, Address shift, Address mask, Address bound,
             Address y, Address log_det, Address workspace, int device, Address stream) {
            const AffineForwardCall call{input(x),     input(scale), input(shift),   input(mask),
                                         input(bound), output(y),    output(log_det)};
            py::gil_scoped_release released;
            Module::forward(plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
  py::class_<AffineBackwardPlan>(module, "AffineBackward", py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return affine_backward_plan(arguments); }))
      .def_property_readonly("workspace", &Module::backward_workspace)
      .def(
          "__call__",
          [](const AffineBackwardPlan& plan, Address grad_y, Address grad_log_det, Address saved, Address scale,
             Address mask, Address bound, Address grad_x, Address grad_scale, Address grad_shift, Address grad_bound,
             Address workspace, int device, Address stream) {
            const AffineBackwardCall call{input(grad_y),      input(grad_log_det), input(saved),   input(scale),
                                          input(mask),        input(bound),        output(grad_x), output(grad_scale),
                                          output(grad_shift), output(grad_bound)};
            py::gil_scoped_release released;
            Module::backward(plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
}

}  // namespace flowkernels
