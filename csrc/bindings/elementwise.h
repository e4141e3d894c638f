// The plan classes of elementwise ops, the same for every native module: made from keyword arguments, called with
// addresses.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/address.h"
#include "bindings/plan.h"
#include "flow/dequantize.h"
#include "flow/split.h"

namespace flowkernels {

inline void read_options(const py::kwargs& a, DequantizeOptions& options) {
  options = {a["levels"].cast<int64_t>(), a["alpha"].cast<double>()};
}

inline void read_options(const py::kwargs&, SplitOptions&) {}

inline Operand operand(const py::kwargs& a, const std::string& name) {
  const auto dtypes = a["dtypes"].cast<py::dict>();
  if (!dtypes.contains(name)) return {};
  return {static_cast<Dtype>(dtypes[name.c_str()].cast<int>()), view(a, name.c_str())};
}

template <class Options>
ElementwisePlan<Options> elementwise_plan(const py::kwargs& a) {
  ElementwisePlan<Options> plan{};
  plan.box = extent(a, "box");
  for (int i = 0; i < kOperands; ++i) {
    plan.input[i] = operand(a, "input_" + std::to_string(i));
    plan.output[i] = operand(a, "output_" + std::to_string(i));
  }
  plan.row_stride = a["row_stride"].cast<int64_t>();
  read_options(a, plan.options);
  return plan;
}

// `Launcher` has the plan's workspace and the launch of one kernel of a backend.
template <class Launcher, class Options>
void bind_elementwise(py::module_& module, const char* name) {
  using Plan = ElementwisePlan<Options>;
  // A struct of its own, because kernels of one op share the plan's type.
  struct Bound {
    Plan plan;
  };
  py::class_<Bound>(module, name, py::module_local())
      .def(py::init([](const py::kwargs& arguments) { return Bound{elementwise_plan<Options>(arguments)}; }))
      .def_property_readonly("workspace", [](const Bound& bound) { return Launcher::workspace(bound.plan); })
      .def(
          "__call__",
          [](const Bound& bound, Address input_0, Address input_1, Address input_2, Address per_row, Address output_0,
             Address output_1, Address output_2, Address sums, Address workspace, int device, Address stream) {
            const ElementwiseCall call{{input(input_0), input(input_1), input(input_2)},
                                       input(per_row),
                                       {output(output_0), output(output_1), output(output_2)},
                                       output(sums)};
            py::gil_scoped_release released;
            Launcher::launch(bound.plan, call, output(workspace), device, output(stream));
          },
          py::pos_only());
}

// `Module` has a launcher for each kernel.
template <class Module>
void bind_elementwise_ops(py::module_& module) {
  bind_elementwise<typename Module::DequantizeForward, DequantizeOptions>(module, "DequantizeForward");
  bind_elementwise<typename Module::DequantizeBackward, DequantizeOptions>(module, "DequantizeBackward");
  bind_elementwise<typename Module::Quantize, DequantizeOptions>(module, "Quantize");
  bind_elementwise<typename Module::SplitForward, SplitOptions>(module, "SplitForward");
  bind_elementwise<typename Module::SplitBackward, SplitOptions>(module, "SplitBackward");
}

}  // namespace flowkernels
