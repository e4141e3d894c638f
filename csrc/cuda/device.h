// Devices and errors of the CUDA runtime, without its headers.
#pragma once

#include <string>

namespace flowkernels::cuda {

// Throws std::runtime_error if `error`, a cudaError_t, is not success.
void check(int error, const char* doing);

// Why kernels of this build cannot run on a device, empty if they can.
std::string device_problem(int device);

// Makes a device current for as long as it lives: a launch goes to the current device, whatever its stream.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;

 private:
  int previous_;
  bool changed_;
};

}  // namespace flowkernels::cuda
