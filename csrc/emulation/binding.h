// What tests see of the emulation: `_cuda.emulation`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulation/block.h"
#include "emulation/cuda.h"
#include "emulation/record.h"

namespace flowkernels {

inline void bind_emulation(pybind11::module_& module) {
  namespace py = pybind11;
  using emulation::Launch;
  using emulation::Schedule;
  py::module_ m = module.def_submodule("emulation", "The CUDA module executed on the CPU: what its launches did.");
  py::register_exception<emulation::Fault>(m, "Fault", PyExc_RuntimeError);
  py::class_<Launch>(m, "Launch")
      .def_readonly("name", &Launch::name)
      .def_readonly("blocks", &Launch::blocks)
      .def_readonly("threads", &Launch::threads)
      .def_readonly("device", &Launch::device)
      .def_property_readonly("stream", [](const Launch& l) { return reinterpret_cast<uintptr_t>(l.stream); })
      .def_readonly("loaded", &Launch::loaded, "32-byte sectors read, each counted once")
      .def_readonly("stored", &Launch::stored)
      .def_readonly("load_requests", &Launch::load_requests, "sectors read, counted once per instruction of a warp")
      .def_readonly("store_requests", &Launch::store_requests);
  m.def("log", &emulation::log, "The launches since the last reset.");
  m.def("reset", &emulation::reset);
  m.def("current_device", [] {
    int device;
    cudaGetDevice(&device);
    return device;
  });
  m.def("count_sectors", &emulation::count_sectors, py::arg("on"));
  m.def(
      "schedule",
      [](const std::string& name, uint64_t seed) {
        if (name == "forward") return emulation::set_schedule(Schedule::forward, seed);
        if (name == "reverse") return emulation::set_schedule(Schedule::reverse, seed);
        if (name == "shuffled") return emulation::set_schedule(Schedule::shuffled, seed);
        throw py::value_error("schedule must be forward, reverse or shuffled; got " + name);
      },
      py::arg("name"), py::arg("seed") = 0, "The order in which the threads of a block take turns.");
}

}  // namespace flowkernels
