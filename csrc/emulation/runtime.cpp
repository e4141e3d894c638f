// The runtime's functions: launches, and a few pretended devices.
#include <limits>
#include <mutex>

#include "emulation/cuda.h"

namespace flowkernels::emulation {
namespace {

thread_local int current_device = 0;
std::mutex one_launch_at_a_time;
size_t dynamic_shared = 0;

}  // namespace

void launch(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads < 1 || launch.threads > 1024) throw Fault("a block has 1 to 1024 threads");
  if (launch.blocks < 1 || launch.blocks > std::numeric_limits<int32_t>::max()) throw Fault("the grid is too large");
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  Launch logged = launch;
  logged.device = current_device;
  dynamic_shared = launch.dynamic_shared;
  begin_launch(logged);
  for (int64_t block = 0; block < launch.blocks; ++block) {
    run_block(static_cast<unsigned>(block), static_cast<unsigned>(launch.threads), kernel);
    end_block();
  }
  end_launch();
}

size_t dynamic_shared_bytes() { return dynamic_shared; }

}  // namespace flowkernels::emulation

using flowkernels::emulation::current_device;

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "cudaErrorInvalidDevice" : "cudaErrorUnknown";
}
const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kEmulatedDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kEmulatedDevices) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
