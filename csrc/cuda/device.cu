#include "cuda/device.h"
#include "cuda/launch.cuh"

namespace flowkernels::cuda {
namespace {

// Tells whether this build has code for a device: all kernels are built for the same architectures.
__global__ void __launch_bounds__(kThreads) probe(int) {}

bool unusable(cudaError_t error) { return error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice; }

std::string describe(int error) {
  const cudaError_t code = static_cast<cudaError_t>(error);
  const std::string text = cudaGetErrorString(code);
  if (unusable(code)) return "no usable CUDA device: " + text;
  return std::string(cudaGetErrorName(code)) + ": " + text;
}

}  // namespace

void check(int error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it would otherwise be reported again by the next call, torch's perhaps
  throw std::runtime_error(std::string(doing) + ": " + describe(error));
}

std::string device_problem(int device) {
  try {
    int devices = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) {
      cudaGetLastError();
      return describe(error);
    }
    if (device < 0 || device >= devices) return "there is no CUDA device " + std::to_string(device);
    const CurrentDevice current(device);
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&probe));
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return describe(error);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

CurrentDevice::CurrentDevice(int device) {
  check(cudaGetDevice(&previous_), "cudaGetDevice");
  changed_ = previous_ != device;
  if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() {
  if (changed_) cudaSetDevice(previous_);
}

}  // namespace flowkernels::cuda
